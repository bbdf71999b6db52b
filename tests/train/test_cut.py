"""The backward pass stops at a cut: the same gradients above, fewer FLOPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.freezing import freezing_layers
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.observe.flops import count_flops
from reslab.optim.drop_muon import cuts
from reslab.parallel.mesh import make_mesh, use_mesh
from reslab.train.state import make_setup
from reslab.train.step import make_step

DEPTH = 4


@pytest.mark.conformance
@pytest.mark.parametrize(
    "options",
    [
        {"mixer": "attention(heads=2, value_path='value_residual')"},
        {"ffn": ("swiglu(hidden=32)", "gelu(hidden=32)"), "remat": "full"},
    ],
    ids=["shared", "period"],
)
def test_gradients_above_a_cut_are_those_of_the_whole(options):
    fields = {"mixer": "attention(heads=2)", "ffn": "swiglu(hidden=32)"} | options
    model = LanguageModel(vocabulary_size=24, features=16, depth=DEPTH, **fields)
    tokens = np.random.default_rng(0).integers(0, 24, (2, 8), np.int32)
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens)["params"])
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes
    )

    def loss(params):
        logits = model.apply({"params": params}, tokens)
        return jnp.mean(jnp.square(logits))

    whole = named_leaves(jax.jit(jax.grad(loss))(params))
    with freezing_layers(2):
        above = named_leaves(jax.jit(jax.grad(loss))(params))
    assert not np.any(above["embedding"])
    np.testing.assert_allclose(above["head"], whole["head"], rtol=1e-5, atol=1e-7)
    for name, leaf in whole.items():
        if "segment_" not in name or "scale" in name:
            continue
        rows = above[name]
        if rows.shape[0] == DEPTH:
            assert not np.any(rows[:2]), name
            rows, leaf = rows[2:], leaf[2:]
        elif rows.shape[0] == 2:  # Two periods of two layers, the first frozen.
            assert not np.any(rows[:1]), name
            rows, leaf = rows[1:], leaf[1:]
        else:
            continue
        np.testing.assert_allclose(rows, leaf, rtol=1e-4, atol=1e-7, err_msg=name)


def test_a_higher_cut_costs_fewer_flops():
    model = LanguageModel(
        vocabulary_size=24,
        features=16,
        depth=DEPTH,
        mixer="attention(heads=2)",
        ffn="gelu(hidden=32)",
    )
    tokens = jnp.zeros((2, 8), jnp.int32)
    params = jax.eval_shape(lambda: unbox(model.init(jax.random.key(0), tokens)))

    def flops(cut):
        def gradient(params):
            with freezing_layers(cut):
                return jax.grad(lambda p: jnp.sum(model.apply(p, tokens)))(params)

        return count_flops(gradient, params)

    counts = [flops(cut) for cut in range(DEPTH)]
    each = 2 * 2 * 8 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 4 * 8 * 8 * 16
    # A layer at rest saves its backward pass, twice its forward; the lowest that
    # learns also saves the gradient by its input, through three or one product.
    for saved in -np.diff(counts)[1:]:
        assert saved == 2 * each
    assert counts[0] - counts[1] == 2 * each


def test_cuts_are_drawn_evenly_and_move_up():
    plan = cuts(8, 1000)
    assert plan.values == (0, 2, 4, 6)
    drawn = np.asarray(jax.vmap(plan.at_step)(jnp.arange(4000)))
    np.testing.assert_allclose(np.bincount(drawn) / 4000, 0.25, atol=0.03)
    rising = cuts(8, 1000, shift=0.5)
    drawn = np.asarray(jax.vmap(rising.at_step)(jnp.arange(1000)))
    assert drawn[:200].mean() < 1 < 2 < drawn[-200:].mean()


@pytest.mark.conformance
def test_a_step_trains_what_is_above_its_cut(small_config):
    config = small_config(
        optim__name="drop_muon(inner='sgd', buckets=2)",
        model__depth=2,
        model__loop="scan",
    )
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    setup = make_setup(config, mesh)
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, 24, (8, 16), np.int32),
        "targets": rng.integers(0, 24, (8, 16), np.int32),
        "positions": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
        "segment_ids": np.ones((8, 16), np.int32),
        "loss_mask": np.ones((8, 16), bool),
    }
    plan, seen = cuts(2, config.train.steps, buckets=2), set()
    with use_mesh(mesh):
        state = setup.init()
        step = jax.jit(make_step(setup))
        for number in range(6):
            resting = plan.values[int(plan.at_step(jnp.asarray(number)))]
            seen.add(resting)
            after, _ = step(state, batch)
            before, new = named_leaves(state.params), named_leaves(after.params)
            for name, leaf in before.items():
                same = np.asarray(leaf == new[name])
                if name == "embedding":
                    assert same.all() == (resting > 0)
                elif name.endswith("query/kernel"):
                    layers = same.reshape(2, -1).all(1)
                    np.testing.assert_array_equal(layers, np.arange(2) < resting)
            state = after
    assert seen == {0, 1}
