"""Frozen parameters: their gradients are not computed, counted or logged."""

import jax
import numpy as np
import optax
import pytest

from reslab.core.trees import named_leaves
from reslab.observe.flops import count_flops
from reslab.parallel.mesh import make_mesh, use_mesh
from reslab.train.cost import training_flops_per_unit
from reslab.train.state import make_setup
from reslab.train.step import make_step

HEAD_ONLY = (("head$", {}), (".", {"freeze": True}))
BOTTOM = (("head$", {}), (".", {"scaling": "freeze_bottom(count=1)"}))


@pytest.fixture
def setup_of(small_config):
    def build(**changes):
        mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
        return make_setup(small_config(**changes), mesh)

    return build


def shapes_of(setup):
    batch = setup.task.batch_shapes(setup.config.data.batch)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (setup.shapes, batch)
    )


@pytest.mark.parametrize("layers", ["unroll", "scan"])
def test_training_the_head_alone_costs_the_forward_pass_and_the_head(setup_of, layers):
    whole = setup_of(model__loop=layers)
    head = setup_of(model__loop=layers, optim__groups=HEAD_ONLY)
    forward = training_flops_per_unit(whole) // 3
    size = named_leaves(whole.shapes.params)["head"].size
    counted = count_flops(make_step(head), *shapes_of(head))
    units = head.config.data.batch * head.task.units_per_example
    assert counted == units * (forward + 2 * size)
    assert training_flops_per_unit(head) == forward + 2 * size
    assert count_flops(make_step(whole), *shapes_of(whole)) == 3 * units * forward


@pytest.mark.conformance
@pytest.mark.parametrize("groups", [HEAD_ONLY, BOTTOM], ids=["head", "bottom"])
def test_the_logged_norm_is_that_of_what_learns(setup_of, groups):
    setup = setup_of(model__loop="scan", optim__groups=groups)
    rng = np.random.default_rng(0)
    batch = {
        key: np.ones(leaf.shape, leaf.dtype)
        for key, leaf in setup.task.batch_shapes(setup.config.data.batch).items()
    }
    for key in ("tokens", "targets"):
        batch[key] = rng.integers(1, 200, batch[key].shape, batch[key].dtype)
    state = setup.init()

    def loss(params):
        total, sums, _ = setup.task.loss_sums(setup.model, {"params": params}, batch)
        return total / sums["tokens"]

    with use_mesh(setup.mesh):
        gradient = named_leaves(jax.jit(jax.grad(loss))(state.params))
        after, metrics = jax.jit(make_step(setup))(state, batch)
    learning = {"head": gradient["head"]}
    if groups is BOTTOM:
        learning = {
            name: leaf[1:] if "/segment_" in name else leaf
            for name, leaf in gradient.items()
            if name != "embedding"
        }
    np.testing.assert_allclose(
        metrics["gradient_norm"], optax.tree.norm(learning), rtol=1e-5
    )
    before, after = named_leaves(state.params), named_leaves(after.params)
    for name, old in before.items():
        frozen = slice(0 if name in learning else None, None)
        if groups is BOTTOM and "/segment_" in name:
            frozen = slice(0, 1)
        elif name in learning:
            frozen = slice(0, 0)
        np.testing.assert_array_equal(after[name][frozen], old[frozen])
        assert np.array_equal(after[name], old) == (name not in learning), name
