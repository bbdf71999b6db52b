"""noise_adaptive_muon and spectral: what their papers promise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.layout import Layout, read
from reslab.ops.spectra import spectrum_quantiles
from reslab.optim.noise_adaptive_muon import build as noise_adaptive
from reslab.optim.noise_adaptive_muon import dual_norms
from reslab.optim.orthogonalization import coefficients, orthogonalized
from reslab.optim.spectral import (
    floors,
    iterations_for,
    scale_by_spectral,
)

LAYOUT = {"w": read(("layers", "embed", "mlp"), (0, 1))}
PLAIN = "sgd(momentum=0.0)"


def ratios(alpha, noise, steps=300):
    """The sizes of the last update over that of the gradient, by layer."""
    made = noise_adaptive(1.0, 0.0, LAYOUT, PLAIN, alpha=alpha, b2=0.98)
    mean = jax.random.normal(jax.random.key(0), (2, 6, 8))
    scale = jnp.asarray(noise).reshape(2, 1, 1)

    def step(state, key):
        gradient = {"w": mean + scale * jax.random.normal(key, mean.shape)}
        updates, state = made.update(gradient, state, gradient)
        return state, -updates["w"][:, 0, 0] / gradient["w"][:, 0, 0]

    state = made.init({"w": mean})
    keys = jax.random.split(jax.random.key(1), steps)
    state, found = jax.jit(lambda s: jax.lax.scan(step, s, keys))(state)
    return np.asarray(found[-1]), np.asarray(state.noise["w"].reshape(-1))


def test_noise_is_heard_and_slows_a_layer():
    found, noise = ratios(1e-3, (0.1, 1.0))
    np.testing.assert_allclose(noise[1] / noise[0], 100, rtol=0.3)
    np.testing.assert_allclose(found[0], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found[1], (noise[0] / noise[1]) ** 0.25, rtol=1e-3)


def test_a_tolerant_alpha_slows_none():
    found, _ = ratios(1e6, (0.1, 1.0), steps=20)
    np.testing.assert_allclose(found, 1.0, rtol=1e-4)


def test_without_noise_it_is_the_inner_optimizer():
    gradient = {"w": jax.random.normal(jax.random.key(0), (2, 6, 8))}
    plain = registry.make("optimizers", "muon", learning_rate=0.1, layouts=LAYOUT)
    made = noise_adaptive(0.1, 0.0, LAYOUT)
    state, plain_state = made.init(gradient), plain.init(gradient)
    for _ in range(3):
        updates, state = made.update(gradient, state, gradient)
        wanted, plain_state = plain.update(gradient, plain_state, gradient)
        np.testing.assert_array_equal(updates["w"], wanted["w"])


def test_dual_norms_are_their_definitions():
    x = jax.random.normal(jax.random.key(0), (6, 8))
    kinds = {
        "w": Layout("matrix", (), (0,), (1,)),
        "e": Layout("embedding", (), (0,), (1,)),
        "v": Layout(),
    }
    found = dual_norms({"w": x, "e": x, "v": x[0]}, kinds)
    nuclear = np.linalg.svd(x, compute_uv=False).sum()
    np.testing.assert_allclose(
        found["w"].squeeze(), (8 / 6) ** 0.5 * nuclear, rtol=0.03
    )
    np.testing.assert_allclose(found["e"].squeeze(), np.abs(x).sum(), rtol=1e-5)
    np.testing.assert_allclose(
        found["v"].squeeze(), 8**0.5 * np.linalg.norm(x[0]), rtol=1e-5
    )


def test_floors_are_those_of_the_iteration():
    """Measured on matrices with prescribed spectra, within 2%."""
    wanted = (1.78e-2, 5.2e-3, 1.5e-3, 4.4e-4, 1.3e-4, 3.7e-5)
    np.testing.assert_allclose(floors(8)[2:], wanted, rtol=0.04)
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((16, 16)))[0] for _ in range(2))
    for steps in range(3, 9):
        low = floors(steps)[-1]
        values = np.full(16, np.sqrt((1 - low**2) / 15))
        values[-1] = low
        matrix = jnp.asarray((u * values) @ v, jnp.float32)
        with jax.default_matmul_precision("highest"):
            done = orthogonalized(matrix, coefficients("keller", steps))
        least = np.linalg.svd(np.asarray(done, np.float64), compute_uv=False)[-1]
        np.testing.assert_allclose(least, 0.68, rtol=0.02)


def test_smaller_singular_values_need_more_steps():
    lowest = jnp.geomspace(1.0, 1e-6, 50)
    steps = np.asarray(iterations_for(lowest, 2, 7))
    assert np.all(np.diff(steps) >= 0)
    assert steps[0] == 2 and steps[-1] == 7


def test_quantiles_of_a_random_matrix_are_the_quarter_circles():
    x = jax.random.normal(jax.random.key(0), (1, 256, 256))
    found = spectrum_quantiles(x, (0.1, 0.5))
    np.testing.assert_allclose(found[0, 0], 0.157 / 16, rtol=0.05)
    wanted = np.quantile(np.linalg.svd(x[0], compute_uv=False), 0.5) / np.linalg.norm(x)
    np.testing.assert_allclose(found[0, 1], wanted, rtol=1e-4)


def test_layers_take_the_steps_that_they_need():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((8, 8)))[0] for _ in range(2))
    flat = u @ v
    spiked = (u * np.array([1.0] + [1e-3] * 7)) @ v
    gradient = {"w": jnp.asarray(np.stack([flat, spiked]), jnp.float32)}
    made = scale_by_spectral(every=2, least=2, products="float32", layouts=LAYOUT)
    updates, state = made.update(gradient, made.init(gradient), gradient)
    few, many = (int(n) for n in state.iterations["w"].reshape(-1))
    assert (few, many) == (2, 6)
    rows = coefficients("keller", 8)
    for index, steps in enumerate((few, many)):
        wanted = 0.2 * 8**0.5 * orthogonalized(gradient["w"][index], rows[:steps])
        np.testing.assert_allclose(updates["w"][index], wanted, atol=2e-5)
    _, later = made.update({"w": gradient["w"][::-1]}, state, gradient)
    np.testing.assert_array_equal(later.iterations["w"], state.iterations["w"])


@pytest.mark.parametrize(
    "spec, words",
    [
        ("noise_adaptive_muon(every=0)", "at least 1; got 0"),
        ("noise_adaptive_muon(alpha=0.0)", "above 0"),
        ("spectral(every=0)", "at least 1; got 0"),
        ("spectral(least=9)", "1 to most (8); got 9"),
        ("spectral(quantile=2.0)", "at least 0 and at most 1"),
        ("drop_muon(buckets=0)", "at least 1; got 0"),
    ],
)
def test_mistakes(spec, words):
    with pytest.raises(ReslabError) as caught:
        registry.make("optimizers", spec, learning_rate=0.1)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_plain_optax():
    made = optax.chain(
        optax.clip(1.0), registry.make("optimizers", "spectral", learning_rate=0.1)
    )
    params = {"w": jnp.ones((4, 6)), "b": jnp.ones(3)}
    updates, _ = made.update(params, made.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
