import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.mixers.attention import Attention

BATCH, LENGTH, WIDTH = 2, 6, 16
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def rms(x, gain):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (1 + gain)


def rotated(x, position):
    """Rotates one vector, as complex numbers."""
    half = len(x) // 2
    number = (x[:half] + 1j * x[half:]) * np.exp(
        1j * position * 10_000.0 ** (-np.arange(half) / half)
    )
    return np.concatenate([number.real, number.imag])


def oracle(params, x, positions, segments, *, window=0, softcap=0.0, is_rotary=False):
    """One query at a time, over the list of keys that it may see."""

    def project(name, shape):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        return np.einsum(shape, x, kernel) + bias

    query, key, value = (
        project(name, "ble,ehd->blhd") for name in ("query", "key", "value")
    )
    if "query_norm" in params:
        query = rms(query, params["query_norm"]["gain"])
        key = rms(key, params["key_norm"]["gain"])
    heads, head_dim = query.shape[2:]
    group = heads // key.shape[2]
    mixed = np.zeros_like(query)
    for b, t, h in np.ndindex(query.shape[:3]):
        visible = [
            s
            for s in range(t + 1)
            if segments[b, s] == segments[b, t] and (not window or s > t - window)
        ]
        q, keys = query[b, t, h], [key[b, s, h // group] for s in visible]
        if is_rotary:
            q = rotated(q, positions[b, t])
            keys = [
                rotated(k, positions[b, s]) for k, s in zip(keys, visible, strict=True)
            ]
        scores = np.array([q @ k for k in keys]) / np.sqrt(head_dim)
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        mixed[b, t, h] = weights @ np.stack([value[b, s, h // group] for s in visible])
    output = params["output"]
    return np.einsum("blhd,hde->ble", mixed, output["kernel"]) + output["bias"]


@pytest.mark.parametrize(
    "fields",
    [
        {"heads": 4},
        {"heads": 4, "kv_heads": 2, "position": "rope"},
        {"heads": 4, "kv_heads": 1, "head_dim": 6, "window": 3},
        {"heads": 2, "softcap": 2.0, "qk_norm": "rms", "position": "rope"},
    ],
    ids=str,
)
def test_equation(x64, fields):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, LENGTH, WIDTH))
    segments = np.array([[0] * LENGTH, [0, 0, 1, 1, 1, 1]])
    positions = np.array([[*range(LENGTH)], [0, 1, 0, 1, 2, 3]])
    module = Attention(**fields, use_bias=True, **DOUBLE)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, positions=positions)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes["params"])
    params = {
        name: {key: getattr(box, "value", box) for key, box in part.items()}
        for name, part in params.items()
    }
    y, _, _ = jax.jit(module.apply)(
        {"params": params}, x, positions=positions, segments=segments
    )
    wanted = oracle(
        params,
        x,
        positions,
        segments,
        window=fields.get("window", 0),
        softcap=fields.get("softcap", 0.0),
        is_rotary="position" in fields,
    )
    np.testing.assert_allclose(y, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["learned", "const"])
def test_golden_value_residual(golden, x64, name):
    data = {
        key.removeprefix(f"resformer_{name}_"): value
        for key, value in golden("value_residual").items()
    }
    batch, length, heads, head_dim = data["v"].shape
    width = heads * head_dim
    mode = "constant" if name == "const" else name
    # With a window of one each token reads its own value: what comes out of
    # projections that change nothing is the mixture itself.
    module = Attention(heads=heads, window=1, value_residual=mode, **DOUBLE)
    into = np.eye(width).reshape(width, heads, head_dim)
    kernels = {"query": into, "key": into, "value": into}
    kernels["output"] = np.eye(width).reshape(heads, head_dim, width)
    params = {key: {"kernel": kernel} for key, kernel in kernels.items()}
    scales = {}
    if name == "learned":
        scales = {
            "first_scale": data["p_lambda1"].reshape(()),
            "own_scale": data["p_lambda2"],
        }

    def mix(scales, own, first):
        y, _, _ = module.apply(
            {"params": params | scales},
            own.reshape(batch, length, width),
            positions=np.zeros((batch, length), np.int32),
            shared={"values": first},
        )
        return y.reshape(own.shape)

    y, pull = jax.vjp(mix, scales, data["v"], data["v1"])
    gradient, own_gradient, first_gradient = pull(jnp.asarray(data["cot"]))
    pairs = [(y, "out"), (own_gradient, "grad_v"), (first_gradient, "grad_v1")]
    if name == "learned":
        pairs.append((gradient["first_scale"], "grad_p_lambda1"))
        pairs.append((gradient["own_scale"], "grad_p_lambda2"))
    for actual, key in pairs:
        wanted = data[key].reshape(actual.shape)
        np.testing.assert_allclose(actual, wanted, rtol=1e-7, atol=1e-7, err_msg=key)


def test_first_layer_leaves_its_values_and_later_ones_keep_them():
    x = jax.random.normal(jax.random.key(0), (1, 3, 8))
    positions = jnp.arange(3)[None]
    module = Attention(heads=2, value_residual="constant")
    (_, shared, _), variables = jax.jit(module.init_with_output)(
        jax.random.key(0), x, positions=positions
    )
    assert shared["values"].shape == (1, 3, 2, 4)
    _, kept, _ = jax.jit(module.apply)(
        variables, 2 * x, positions=positions, shared={"values": shared["values"]}
    )
    np.testing.assert_array_equal(kept["values"], shared["values"])


def test_equal_keys_are_averaged():
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    eye = jnp.eye(8).reshape(8, 2, 4)
    params = {
        "query": {"kernel": eye},
        "key": {"kernel": jnp.zeros((8, 2, 4))},
        "value": {"kernel": eye},
        "output": {"kernel": jnp.eye(8).reshape(2, 4, 8)},
    }
    y, _, _ = Attention(heads=2).apply(
        {"params": params}, x, positions=jnp.arange(5)[None]
    )
    means = np.cumsum(np.asarray(x), axis=1) / np.arange(1, 6)[None, :, None]
    np.testing.assert_allclose(y, means, atol=1e-6)


def test_cache_is_as_long_as_asked_for_and_holds_key_value_heads_only():
    module = Attention(heads=4, kv_heads=2, dtype=jnp.bfloat16)
    state = module.init_state(3, 32, 16)
    assert state["key"].shape == state["value"].shape == (3, 32, 2, 4)
    assert state["key"].dtype == jnp.bfloat16
    assert int(state["length"]) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 4, "kv_heads": 3}, r"kv_heads: expected a divisor of heads \(4\)"),
        ({"heads": 3}, r"heads: expected a divisor of the width \(16\); got 3"),
        ({"value_residual": "constnat"}, "'constant' or 'learned'; got 'constnat'"),
    ],
)
def test_refuses_what_does_not_fit(fields, message):
    with pytest.raises(ReslabError, match=message):
        Attention(**fields).sizes(16)
