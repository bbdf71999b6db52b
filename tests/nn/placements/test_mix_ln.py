"""Post-norm below, pre-norm above; the values are in test_goldens.py."""

import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.nn.placements.post import PostNorm
from reslab.nn.placements.pre import PreNorm


def kinds(alpha, layers):
    return [
        type(
            registry.make(
                "placements",
                f"mix_ln(alpha={alpha})",
                layer=layer,
                layers=layers,
                parent=None,
            )
        )
        for layer in range(layers)
    ]


@pytest.mark.parametrize(
    "alpha, layers, post",
    [(0.25, 12, 3), (0.25, 24, 6), (0.0625, 32, 2), (0.3, 10, 3), (0, 4, 0), (1, 4, 4)],
)
def test_the_first_layers_are_post_norm(alpha, layers, post):
    assert kinds(alpha, layers) == [PostNorm] * post + [PreNorm] * (layers - post)


def test_each_part_is_one_scan(small_variables):
    names = small_variables(placement="mix_ln", depth=8)
    body = "params/layers/body"
    post = names[f"{body}/segment_0/block_0/mixer_placement/stream_norm/gain"]
    pre = names[f"{body}/segment_1/block_0/mixer_placement/input_norm/gain"]
    assert (post.shape[0], pre.shape[0]) == (2, 6)
    assert not [name for name in names if "segment_2" in name]


@pytest.mark.conformance
def test_a_pattern_of_mixers_goes_across_the_border(small_variables):
    mixers = ("gated_delta(heads=2)", "attention(heads=2)")
    names = small_variables(placement="mix_ln(alpha=0.5)", depth=8, mixer=mixers)
    blocks = {name.split("/mixer/")[0] for name in names if "/mixer/" in name}
    body = "params/layers/body/segment_"
    assert blocks == {f"{body}{i}/block_{j}" for i in (0, 1) for j in (0, 1)}


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_is_a_share(alpha):
    with pytest.raises(ReslabError, match="alpha: expected at least 0 and at most 1"):
        kinds(alpha, 4)


@pytest.mark.parametrize("alpha, has_norm", [(1, False), (0.5, True)])
def test_a_final_norm_follows_pre_norm_only(small_variables, alpha, has_norm):
    names = small_variables(placement=f"mix_ln(alpha={alpha})")
    assert ("params/final_norm/gain" in names) == has_norm
