import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from reslab.core import registry
from reslab.optim.base.group import Group, assign, parse_groups
from reslab.optim.groups import grouped

PARAMS = {
    "kernel": jnp.full((2, 2), 2.0),
    "gain": jnp.full((2,), 3.0),
    "frozen": jnp.full((2,), 4.0),
}
GRADIENTS = jax.tree.map(jnp.ones_like, PARAMS)
GROUPS = (
    ("kernel", {"lr_scale": 0.5}),
    ("frozen", {"freeze": True}),
    (".", {"weight_decay": 0.0}),
)


def one_step(clip=0.0, schedule=lambda _: 1.0):
    transformation = grouped(
        "sgd(momentum=0.0)",
        PARAMS,
        parse_groups(GROUPS),
        learning_rate=0.1,
        schedule=schedule,
        weight_decay=0.2,
        clip=clip,
    )
    updates, _ = transformation.update(GRADIENTS, transformation.init(PARAMS), PARAMS)
    return updates


def test_each_group_has_its_own_rate_and_decay():
    updates = one_step()
    np.testing.assert_allclose(updates["kernel"], -0.05 * (1 + 0.2 * 2), rtol=1e-6)
    np.testing.assert_allclose(updates["gain"], -0.1, rtol=1e-6)
    np.testing.assert_array_equal(updates["frozen"], 0)


def test_frozen_gradients_do_not_count_in_the_clipped_norm():
    updates = one_step(clip=1.0)
    # Six gradients of one are left: four in the kernel, two in the gain.
    np.testing.assert_allclose(updates["gain"], -0.1 / np.sqrt(6), rtol=1e-6)


def test_the_schedule_scales_every_group():
    updates = one_step(schedule=lambda _: 0.5)
    np.testing.assert_allclose(updates["gain"], -0.05, rtol=1e-6)


def test_assign_names_the_group_of_every_parameter():
    assigned = assign(PARAMS, parse_groups(GROUPS))
    assert assigned["kernel"] == Group(lr_scale=0.5)
    assert assigned["frozen"] == Group(freeze=True)
    assert assigned["gain"] == Group(weight_decay=0.0)


def test_adamw_is_that_of_optax():
    ours = registry.make(
        "optimizers", "adamw(b1=0.8, b2=0.9)", learning_rate=0.1, weight_decay=0.3
    )
    theirs = optax.adamw(0.1, b1=0.8, b2=0.9, weight_decay=0.3)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):
            a, _ = ours.update(GRADIENTS, ours.init(PARAMS), PARAMS)
            b, _ = theirs.update(GRADIENTS, theirs.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(a, b)


def test_sgd_keeps_decay_out_of_the_momentum():
    transformation = registry.make(
        "optimizers", "sgd(momentum=0.5)", learning_rate=1.0, weight_decay=0.1
    )
    params, gradient = jnp.asarray(2.0), jnp.asarray(1.0)
    state = transformation.init(params)
    for velocity in (1.0, 1.5):
        update, state = transformation.update(gradient, state, params)
        np.testing.assert_allclose(update, -(velocity + 0.1 * 2.0), rtol=1e-6)
