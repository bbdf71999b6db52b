import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.nn.residuals.all_layers import AllLayers

DEPTH, WIDTH = 3, 4


def run(residual, x, logits, kernels):
    stream = residual.widen(x).listed()
    for site, kernel in enumerate(kernels):
        own = residual.clone(sublayer_index=site % 2)

        def branch(h, kernel=kernel):
            return jnp.tanh(h @ kernel)

        stream = own.apply({}, stream, branch, site=site)
    return residual.apply({"params": {"logits": logits}}, stream, method="narrow")


@pytest.mark.parametrize("depth", [1, DEPTH])
def test_equation_and_gradients(x64, depth):
    rng = np.random.default_rng(0)
    x, cotangent = jnp.asarray(rng.normal(size=(2, 2, 3, WIDTH)))
    logits = jnp.asarray(rng.normal(size=depth))
    kernels = jnp.asarray(rng.normal(size=(2 * depth, WIDTH, WIDTH)))
    residual = AllLayers(depth=depth, sublayers=2, param_dtype=jnp.float64)

    def oracle(x, logits, kernels):
        ends = []
        for site, kernel in enumerate(kernels):
            x = x + jnp.tanh(x @ kernel)
            ends += [x] if site % 2 else []
        weights = jnp.exp(logits) / jnp.sum(jnp.exp(logits))
        return jnp.einsum("n,nbld->bld", weights, jnp.stack(ends))

    def both(function):
        y, pull = jax.vjp(function, x, logits, kernels)
        return y, pull(cotangent)

    found = jax.jit(lambda: both(lambda *a: run(residual, *a)))()
    wanted = jax.jit(lambda: both(oracle))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        found,
        wanted,
    )
    _, (_, _, slopes) = found
    assert all(np.any(np.asarray(slope) != 0) for slope in slopes)
    if depth == 1:
        plain = x
        for kernel in kernels:
            plain = plain + jnp.tanh(plain @ kernel)
        np.testing.assert_allclose(found[0], plain, rtol=1e-12)
        assert residual.reduces_to_plain_at_init


def test_starts_as_the_mean_or_as_plain():
    stream = AllLayers(depth=2).widen(jnp.ones((1, 1, 2))).listed()
    stream = stream.write(jnp.full((1, 1, 2), 3.0), 1)
    stream = stream.write(jnp.full((1, 1, 2), 5.0), 2)
    for bias, wanted, is_plain in ((0.0, 4.0, False), (20.0, 5.0, True)):
        residual = AllLayers(depth=2, sublayers=1, last_bias=bias)
        key = jax.random.key(0)
        y, _ = residual.init_with_output(key, stream, method="narrow")
        np.testing.assert_allclose(y, wanted, rtol=1e-6)
        assert residual.reduces_to_plain_at_init == is_plain
