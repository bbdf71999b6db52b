import functools

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core import registry
from reslab.core.surroundings import Context
from reslab.core.trees import unbox

DEPTH = 5


def kinds():
    context = Context(depth=DEPTH, position="rope")
    block = functools.partial(registry.factory("blocks", "standard"), context=context)
    attention = functools.partial(block, mixer="attention(heads=2)", ffn="gelu")
    delta = functools.partial(block, mixer="gated_delta(heads=2)")
    return attention, delta


def test_is_its_blocks_one_after_the_other():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    stack = registry.make("stacks", "uniform", blocks=kinds(), depth=DEPTH)
    variables = jax.jit(stack.init)(jax.random.key(1), x, positions=positions)
    params = unbox(variables)["params"]["body"]
    # Two whole periods are scanned; the half one after them stands alone.
    assert set(params["segment_0"]) == {"block_0", "block_1"}
    assert set(params["segment_1"]) == {"block_0"}

    wanted = x
    for layer in range(DEPTH):
        period, kind = divmod(layer, 2)
        span = params["segment_0" if period < 2 else "segment_1"]
        own = jax.tree.map(lambda leaf, p=period: leaf[p % 2], span[f"block_{kind}"])
        block = kinds()[kind]()
        wanted, _, _ = jax.jit(functools.partial(block.apply, layer=layer))(
            {"params": own}, wanted, {}, positions=positions
        )
    y, state = jax.jit(stack.apply)(variables, x, positions=positions)
    assert state is None
    np.testing.assert_allclose(y, wanted, atol=2e-5)


def test_first_period_runs_alone_where_it_leaves_something_to_the_rest():
    block = functools.partial(
        registry.factory("blocks", "standard"),
        mixer="attention(heads=2, value_path='value_residual')",
    )
    stack = registry.make("stacks", "uniform", blocks=(block,), depth=4)
    x = jax.ShapeDtypeStruct((1, 4, 8), jnp.float32)
    positions = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    variables = jax.eval_shape(stack.init, jax.random.key(0), x, positions=positions)
    body = unbox(variables)["params"]["body"]
    first, rest = (body[f"segment_{i}"]["block_0"]["mixer"] for i in (0, 1))
    assert first["query"]["kernel"].shape[0] == 1
    assert rest["query"]["kernel"].shape[0] == 3
    # The first layer has nothing to mix with.
    assert set(rest) - set(first) == {"value_path"}


def test_stacks_a_state_for_every_layer():
    stack = registry.make("stacks", "uniform", blocks=kinds(), depth=DEPTH)
    whole, rest = stack.init_state(2, 6, 8)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(whole)} == {2}
    assert {leaf.shape[0] for leaf in jax.tree.leaves(rest)} == {1}
    assert whole[0]["key"].shape == (2, 2, 6, 2, 4)
