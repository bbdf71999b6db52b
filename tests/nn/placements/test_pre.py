import jax
import jax.numpy as jnp
import numpy as np

from reslab.nn.placements.pre import PreNorm
from reslab.nn.residuals.plain import Plain


def rms(x, gain):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (1 + gain)


def apply(gain, x, branch):
    placement = PreNorm(param_dtype=jnp.float64)
    params = {"params": {"input_norm": {"gain": gain}}}
    return placement.apply(params, x, Plain(), branch, site=0)


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, gain = rng.normal(size=(2, 3, 8)), rng.normal(size=8)
    wanted = x + np.tanh(rms(x, gain))
    np.testing.assert_allclose(apply(gain, x, jnp.tanh), wanted, rtol=1e-12)


def test_identity_path_is_clean(x64):
    rng = np.random.default_rng(0)
    x, gain = rng.normal(size=(2, 3, 8)), rng.normal(size=8)
    np.testing.assert_array_equal(apply(gain, x, jnp.zeros_like), x)
    slope = jax.jacobian(lambda x: apply(gain, x, jnp.zeros_like))(x[0, :1])
    np.testing.assert_array_equal(slope.reshape(8, 8), np.eye(8))


def test_branch_does_not_see_the_scale_of_the_stream(x64):
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    seen = []

    def branch(h):
        seen.append(h)
        return h

    for scale in (1.0, 1e3):
        apply(np.zeros(8), scale * x, branch)
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-5)


def test_leaves_the_last_norm_to_the_model():
    assert PreNorm.needs_final_norm
