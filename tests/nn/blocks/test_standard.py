import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reslab.core import registry
from reslab.nn.blocks.standard import StandardBlock


class Sites(nn.Module):
    """A placement that leaves the stream's sublayers out and writes down its site."""

    @nn.compact
    def __call__(self, stream, residual, branch, *, site):
        branch(stream)
        return jnp.where(stream < 0, site, 10 * stream + site).astype(stream.dtype)


def test_sublayers_are_numbered_mixer_first_over_all_layers():
    block = StandardBlock(
        mixer="attention(heads=2)", ffn="gelu", placement=lambda **_: Sites()
    )
    x, positions = -jnp.ones((1, 2, 8)), jnp.arange(2)[None]
    (stream, _, _), _ = jax.jit(block.init_with_output)(
        jax.random.key(0), x, {}, layer=3, positions=positions
    )
    np.testing.assert_array_equal(stream, 67.0)


def test_state_and_cost_are_the_mixer_s():
    block = StandardBlock(mixer="attention(heads=2, kv_heads=1)")
    mixer = registry.make("mixers", "attention(heads=2, kv_heads=1)")
    assert block.mixing_flops(32, 16) == mixer.mixing_flops(32, 16)
    assert not block.writes_shared
    shapes = jax.tree.map(jnp.shape, block.init_state(2, 32, 16))
    assert shapes == jax.tree.map(jnp.shape, mixer.init_state(2, 32, 16))
