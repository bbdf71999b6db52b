import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import count_parameters
from reslab.nn.mixers.attention import Attention
from reslab.nn.mixers.latent_attention import LatentAttention

DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
HEADS, KEY, ROPE, RANK = 4, 8, 4, 16
SIZES = {"heads": HEADS, "rope_dim": ROPE, "rank": RANK, "query_rank": RANK}


def converted(get, offset):
    """Parameters of `transformers`' DeepseekV3Attention, which rotates neighbours."""
    pairs = np.concatenate([np.arange(0, ROPE, 2), np.arange(1, ROPE, 2)])
    query = get("q_b_proj.weight").T.reshape(RANK, HEADS, KEY + ROPE)
    latent = get("kv_a_proj_with_mqa.weight").T
    up = get("kv_b_proj.weight").T.reshape(RANK, HEADS, 2 * KEY)
    return {
        "query_down": {"kernel": get("q_a_proj.weight").T},
        "query_norm": {"gain": get("q_a_layernorm.weight") - offset},
        "query": {"kernel": query[..., [*range(KEY), *(KEY + pairs)]]},
        "latent": {"kernel": latent[:, [*range(RANK), *(RANK + pairs)]]},
        "latent_norm": {"gain": get("kv_a_layernorm.weight") - offset},
        "key_up_kernel": up[..., :KEY],
        "value_up_kernel": up[..., KEY:],
        "output": {"kernel": get("o_proj.weight").T.reshape(HEADS, KEY, 32)},
    }


def places(x):
    return jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])


def test_golden_layer(golden, assert_golden):
    module = LatentAttention(**SIZES, position="rope", **DOUBLE)
    arrays = golden("latent_attention_layer")
    assert_golden(module, arrays, converted, positions=places(arrays["in_x"]))


@pytest.mark.parametrize("rope_dim", [0, 4])
def test_the_absorbed_form_is_the_expanded_one(rope_dim, x64):
    x = np.random.default_rng(0).normal(size=(2, 7, 16))
    module = LatentAttention(
        rope_dim=rope_dim, value_dim=3, use_output_gate=True, position="rope", **DOUBLE
    )
    variables = jax.jit(module.init)(jax.random.key(0), x, positions=places(x))
    wanted = module.apply(variables, x, positions=places(x))[0]
    y, _, state = jax.jit(module.apply)(
        variables, x, positions=places(x), state=module.init_state(2, 9, 16)
    )
    np.testing.assert_allclose(y, wanted, atol=1e-12)
    np.testing.assert_array_equal(state["length"], [7, 7])


def test_the_cache_is_narrower_than_that_of_attention():
    latent = LatentAttention(rope_dim=2, rank=4).init_state(2, 100, 16)
    usual = Attention().init_state(2, 100, 16)
    kept = [count_parameters(state) - 2 for state in (latent, usual)]
    assert kept == [2 * 100 * 6, 2 * 100 * 32]


def test_without_causality_the_first_token_sees_the_last():
    x = jax.random.normal(jax.random.key(0), (1, 5, 16))
    module = LatentAttention(is_causal=False)
    variables = module.init(jax.random.key(0), x, positions=places(x))
    y, z = (
        module.apply(variables, x, positions=places(x))[0]
        for x in (x, x.at[:, 4].set(1))
    )
    assert np.all(np.any(y != z, axis=-1))


def test_refuses_more_tokens_than_the_cache_holds():
    x = jnp.zeros((1, 5, 16))
    module = LatentAttention()
    state = module.init_state(1, 4, 16)
    with pytest.raises(ReslabError, match="tokens: expected at most 4"):
        module.init(jax.random.key(0), x, positions=places(x), state=state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, r"heads: expected a divisor of the width \(16\); got 5"),
        ({"value_dim": 30}, r"value_dim: expected at most head_dim \+ rope_dim \(20\)"),
    ],
)
def test_refuses_sizes_that_do_not_fit(fields, message):
    with pytest.raises(ReslabError, match=message):
        LatentAttention(**fields).init_state(1, 1, 16)
