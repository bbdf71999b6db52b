import jax
import jax.numpy as jnp

from reslab.nn.norms.none import NoNorm


def test_returns_its_input_and_has_no_parameters():
    x = jax.random.normal(jax.random.key(0), (2, 4))
    y, variables = NoNorm().init_with_output(jax.random.key(0), x)
    assert not variables
    assert jnp.array_equal(y, x)
    assert y.dtype == x.dtype
