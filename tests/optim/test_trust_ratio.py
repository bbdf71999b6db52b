"""LARS and LAMB: their authors' steps, and a ratio for each layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core.errors import ReslabError
from reslab.core.layout import Layout, read
from reslab.optim import lamb, lars

LEAVES = ("w1", "w2", "bias", "gain")
KINDS = ("w1", "w2"), ("bias", "gain")


@pytest.mark.parametrize(
    "tag, options",
    [
        ("tf_classic_nonest", {}),
        ("tf_classic_nest", {"nesterov": True}),
        ("tf_popular_nonest", {"variant": "popular"}),
        ("tf_popular_nest", {"variant": "popular", "nesterov": True}),
        ("timm", {"variant": "paper", "epsilon": 1e-8}),
        ("timm_nest", {"variant": "paper", "epsilon": 1e-8, "nesterov": True}),
    ],
)
def test_lars_is_that_of_others(replay, turned, tag, options):
    made = lars.build(1.0, 0.01, turned(*KINDS), **options)
    replay("lars", tag, made, leaves=LEAVES, steps=5, atol=1e-6)


def test_larc_is_timms(replay, turned):
    made = lars.build(
        *(0.01, 0.01, turned(*KINDS), "paper"),
        coefficient=0.02,
        epsilon=1e-8,
        clips=True,
    )
    replay("lars", "timm_larc_clip", made, leaves=LEAVES, steps=5, atol=1e-6)


def test_lars_on_averages_is_the_baseline_of_layer_wise_rates(replay, turned):
    made = lars.build(
        *(1e-3, 1e-6, turned(*KINDS), "averaged"),
        coefficient=1.0,
        epsilon=1e-6,
        adapts_vectors=True,
    )
    replay("lars", "llrrepo_olmo_lars", made, leaves=LEAVES, steps=5, atol=1e-6)


@pytest.mark.parametrize(
    "tag, options",
    [
        ("albert_tf_transcribed", {"variant": "google"}),
        ("cybertronai", {"variant": "clamped", "adapts_vectors": True}),
        ("jettify_debias", {"variant": "debiased", "adapts_vectors": True}),
        ("timm", {"adapts_vectors": True}),
    ],
)
def test_lamb_is_that_of_others(replay, turned, tag, options):
    made = lamb.build(0.01, 0.01, turned(*KINDS), **options)
    replay("lamb", tag, made, leaves=LEAVES, steps=5, atol=2e-6)


def test_lamb_after_a_clip_is_timms(replay, turned):
    made = optax.chain(
        optax.clip_by_global_norm(1.0), lamb.build(0.01, 0.01, turned(*KINDS))
    )
    tag = "timm_gradclip1_wdgroups"
    replay("lamb", tag, made, leaves=LEAVES, steps=5, atol=2e-6)


@pytest.mark.parametrize("variant", ["clamped", "google"])
def test_norms_above_ten_count_as_ten_where_they_are_clamped(variant):
    """By the equations, in float64: the authors' run has no norm above ten."""
    rng = np.random.default_rng(0)
    lr, decay, b1, b2, epsilon = 0.01, 0.02, 0.9, 0.999, 1e-6
    params = {"w": 5.0 * rng.standard_normal((6, 8))}
    layouts = {"w": Layout("matrix", (), (0,), (1,))}
    made = lamb.build(lr, decay, layouts, variant)
    state = made.init(jax.tree.map(jnp.float32, params))
    w, m, v, clamped = params["w"], 0.0, 0.0, 0
    found = jax.tree.map(jnp.float32, params)
    for _ in range(4):
        g = rng.standard_normal(w.shape)
        updates, state = made.update({"w": jnp.float32(g)}, state, found)
        found = optax.apply_updates(found, updates)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        u = m / (np.sqrt(v) + epsilon) + decay * w
        size = np.linalg.norm(w)
        clamped += size > 10
        size = min(size, 10) if variant == "clamped" else size
        w = w - lr * size / np.linalg.norm(u) * u
        np.testing.assert_allclose(found["w"], w, rtol=0, atol=1e-5)
    assert clamped == 4


@pytest.mark.parametrize("module, rate", [(lars, 0.1 * 1e-3), (lamb, 0.1)])
def test_first_step_is_a_fraction_of_each_layer(module, rate):
    scales = np.array([1.0, 10.0, 100.0], np.float32).reshape(3, 1, 1)
    params = {"w": scales * jax.random.normal(jax.random.key(0), (3, 4, 5))}
    gradients = {"w": jax.random.normal(jax.random.key(1), (3, 4, 5))}
    made = module.build(0.1, 0.0, {"w": read(("layers", "embed", "mlp"))})
    updates, _ = made.update(gradients, made.init(params), params)

    def sizes(tree):
        return np.linalg.norm(np.asarray(tree["w"]).reshape(3, -1), axis=1)

    np.testing.assert_allclose(sizes(updates) / sizes(params), rate, rtol=1e-4)


@pytest.mark.parametrize("module", [lars, lamb])
def test_scalars_have_no_trust_ratio(module):
    made = module.build(0.1, 0.0, {"s": Layout("vector", (0,))}, adapts_vectors=True)
    with pytest.raises(ReslabError, match="trust ratio on a scalar"):
        made.init({"s": jnp.ones(3)})


@pytest.mark.parametrize(
    "module, options",
    [
        (lars, {"variant": "gogle"}),
        (lamb, {"variant": "clampd"}),
        (lars, {"clips": True}),
    ],
)
def test_mistakes(module, options):
    with pytest.raises(ReslabError, match=r"google|clamped|paper"):
        module.build(0.1, **options)


def test_layers_of_zeros_take_a_plain_step():
    params = {"w": jnp.zeros((2, 2))}
    made = lamb.build(0.1)
    updates, _ = made.update({"w": jnp.ones((2, 2))}, made.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-4)
