"""Steps of the sharp operator and of norms by kind, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.layout import Layout
from reslab.optim import norm_ball, sharp
from reslab.optim.noise_adaptive_muon import dual_norms

KINDS = {
    "w": Layout("matrix", (), (0,), (1,)),
    "e": Layout("embedding", (), (0,), (1,)),
    "h": Layout("head", (), (0,), (1,)),
    "v": Layout(),
    "stack": Layout("vector", (0,)),
}
SHAPES = {"w": (4, 6), "e": (5, 3), "h": (3, 5), "v": (7,), "stack": (2, 5)}


def gradients(seed, names):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(SHAPES[name]) for name in names}


def test_norms_by_kind_are_their_definitions(x64):
    names = ("e", "h", "v", "stack")
    kinds = {name: KINDS[name] for name in names}
    made = norm_ball.scale_by_norm_ball(0.9, kinds)
    means = {name: 0.0 for name in names}
    state = made.init(gradients(0, names))
    for seed in range(3):
        given = gradients(seed, names)
        found, state = made.update(jax.tree.map(jnp.asarray, given), state)
        means = {n: 0.9 * means[n] + 0.1 * given[n] for n in names}
        wanted = {n: np.sign(means[n]) for n in ("e", "h")}
        wanted["v"] = 7**0.5 * means["v"] / np.linalg.norm(means["v"])
        sizes = np.linalg.norm(means["stack"], axis=1, keepdims=True)
        wanted["stack"] = 5**0.5 * means["stack"] / sizes
        for name in names:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-12)
    # The steepest: its product with the average is the dual norm.
    dual = dual_norms(jax.tree.map(jnp.asarray, means), kinds)
    for name in names:
        product = np.sum(found[name] * means[name], KINDS[name].own_axes(means[name]))
        np.testing.assert_allclose(product, np.squeeze(dual[name]), rtol=1e-7)


def test_it_moves_what_muon_leaves():
    kinds = {name: KINDS[name] for name in ("w", "e", "v")}
    given = jax.tree.map(jnp.float32, gradients(0, kinds))
    specs = ("norm_ball", "muon(scale='spectral', nesterov=False, others='norm_ball')")
    moves = []
    for spec in specs:
        made = registry.make("optimizers", spec, learning_rate=0.1, layouts=kinds)
        moves.append(made.update(given, made.init(given), given)[0])
    for name in kinds:
        np.testing.assert_allclose(moves[0][name], moves[1][name], atol=2e-3)
    np.testing.assert_allclose(np.abs(moves[0]["e"]), 0.1, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_the_sharp_operator_is_the_decompositions(x64, beta):
    given = jnp.asarray(gradients(1, ("w",))["w"])
    made = sharp.scale_by_sharp(beta, 8, layouts={"w": KINDS["w"]})
    found, _ = made.update({"w": given}, made.init({"w": given}))
    u, s, v = np.linalg.svd((1 - beta) * np.asarray(given), full_matrices=False)
    np.testing.assert_allclose(found["w"], s.sum() * u @ v, atol=1e-4)


def test_a_sharp_step_is_as_large_as_its_gradient():
    given = {"w": jnp.float32(gradients(1, ("w",))["w"])}
    made = registry.make(
        "optimizers", "drop_muon(inner='sharp')", learning_rate=0.1, layouts=None
    )
    one, _ = made.update(given, made.init(given), given)
    twice, _ = made.update({"w": 2 * given["w"]}, made.init(given), given)
    np.testing.assert_allclose(twice["w"], 2 * one["w"], rtol=1e-4)
