import jax
import numpy as np
import pytest

from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.nn.base import sites
from reslab.nn.placements.deepnorm import DeepNorm
from reslab.nn.placements.sub_ln import SubNorm

TABLE = sites.table([2, 3, 1, 2])


@pytest.mark.parametrize("table", [TABLE, ()])
def test_the_layer_of_a_site_is_that_whose_site_it_is(table):
    found = [
        int(sites.layer_of(site, table, 3))
        for layer in range(4)
        for site in range(
            int(sites.first_of(layer, table, 3)),
            int(sites.first_of(layer + 1, table, 3)),
        )
    ]
    counts = (2, 3, 1, 2) if table else (3,) * 4
    np.testing.assert_array_equal(found, np.repeat(np.arange(4), counts))


def test_a_model_counts_the_sublayers_of_every_block_in_every_pass():
    def context(**fields):
        model = LanguageModel(vocabulary_size=11, depth=4, **fields)
        return model.make_stack(parent=None).context

    mixed = context(block=("standard", "macaron", "parallel"), stack="looped(loops=2)")
    assert mixed.sites == (0, 2, 5, 6, 8, 10, 13, 14, 16)
    assert mixed.depth == 8
    assert mixed.output_scale == 16**-0.5
    assert context(block="parallel").output_scale == 4**-0.5
    assert context(block="hourglass(bottlenecks=2)").sites == (0, 3, 6, 9, 12)
    assert context(block="hourglass(lift=256)").sites == (0, 2, 4, 6, 8)


@pytest.mark.conformance
def test_every_sublayer_has_a_site_of_its_own():
    """Hyper-connections start by reading the stream of their site."""
    model = LanguageModel(
        vocabulary_size=11,
        features=8,
        depth=4,
        mixer="attention(heads=2)",
        block=("standard", "macaron", "parallel"),
        residual="hyper(streams=8)",
    )
    tokens = np.zeros((1, 2), np.int32)
    params = unbox(jax.jit(model.init)(jax.random.key(0), tokens))["params"]
    found = {}
    body = params["layers"]["body"]
    for span, blocks in body.items():
        for block, parts in blocks.items():
            for part, leaves in parts.items():
                if part.endswith("_residual"):
                    reads = np.argmax(np.asarray(leaves["mix"])[:, :, 0], axis=1)
                    found[f"{span}/{block}/{part}"] = reads.tolist()
    assert sorted(site for reads in found.values() for site in reads) == list(range(8))
    assert found["segment_0/block_1/mixer_residual"] == [3]
    assert found["segment_0/block_2/joint_residual"] == [5]


def test_depth_scaled_placements_count_sublayers():
    assert DeepNorm(sites=(0, 3, 6)).adapt(_context()).output_scale == 24**-0.25
    assert DeepNorm(depth=3).adapt(_context()).output_scale == 24**-0.25
    wanted = np.sqrt(np.log(6))
    assert SubNorm(sites=(0, 3, 6)).adapt(_context()).inner_scale == wanted


def _context():
    return LanguageModel(vocabulary_size=11).make_stack(parent=None).context
