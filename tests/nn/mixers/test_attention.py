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


def oracle(
    params,
    x,
    positions,
    segments,
    *,
    window=0,
    softcap=0.0,
    scale=0.0,
    axis="head",
    is_last=False,
    is_rotary=False,
):
    """One query at a time, over the list of keys that it may see."""

    def project(name, shape):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        return np.einsum(shape, x, kernel) + bias

    query, key, value = (
        project(name, "ble,ehd->blhd") for name in ("query", "key", "value")
    )

    def turned(h):
        places = np.broadcast_to(np.asarray(positions)[..., None], h.shape[:3])
        spots = np.ndindex(h.shape[:3])
        rows = [rotated(h[spot], places[spot]) for spot in spots]
        return np.reshape(rows, h.shape)

    def normed(h, name):
        if f"{name}_norm" not in params:
            return h
        gain = params[f"{name}_norm"]["gain"]
        if axis == "width":
            return rms(h.reshape(*h.shape[:2], -1), gain).reshape(h.shape)
        return rms(h, gain)

    if is_rotary and is_last:
        query, key = turned(query), turned(key)
    query, key = normed(query, "query"), normed(key, "key")
    if is_rotary and not is_last:
        query, key = turned(query), turned(key)
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
        scores = np.array([q @ k for k in keys]) * (scale or head_dim**-0.5)
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        mixed[b, t, h] = weights @ np.stack([value[b, s, h // group] for s in visible])
    if "gate" in params:
        mixed = mixed / (1 + np.exp(-project("gate", "ble,ehd->blhd")))
    output = params["output"]
    return np.einsum("blhd,hde->ble", mixed, output["kernel"]) + output["bias"]


@pytest.mark.parametrize(
    "fields",
    [
        {"heads": 4},
        {"heads": 4, "kv_heads": 2, "position": "rope"},
        {"heads": 4, "kv_heads": 1, "head_dim": 6, "window": 3},
        {"heads": 2, "softcap": 2.0, "qk_norm": "rms", "position": "rope"},
        {"heads": 4, "kv_heads": 2, "qk_norm": "rms", "qk_norm_axis": "width"},
        {"qk_norm": "rms", "is_qk_norm_last": True, "position": "rope"},
        {"heads": 2, "score_scale": 0.7, "use_output_gate": True},
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
        scale=fields.get("score_scale", 0.0),
        axis=fields.get("qk_norm_axis", "head"),
        is_last="is_qk_norm_last" in fields,
        is_rotary="position" in fields,
    )
    np.testing.assert_allclose(y, wanted, rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_a_window_needs_a_short_cache(window):
    module = Attention(heads=2, window=window, position="rope")
    x = jax.random.normal(jax.random.key(0), (2, 12, 8))
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    variables = jax.jit(module.init)(jax.random.key(1), x, positions=positions)
    apply = jax.jit(module.apply)
    wanted, _, _ = apply(variables, x, positions=positions)
    state = module.init_state(2, 12, 8)
    assert state["key"].shape == (2, min(12, window - 1), 2, 4)
    parts = []
    for start, stop in ((0, 3), (3, 4), (4, 10), (10, 11), (11, 12)):
        place = {"positions": positions[:, start:stop]}
        y, _, state = apply(variables, x[:, start:stop], **place, state=state)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), wanted, atol=5e-6)


def test_cache_is_as_long_as_asked_for_and_holds_key_value_heads_only():
    module = Attention(heads=4, kv_heads=2, dtype=jnp.bfloat16)
    state = module.init_state(3, 32, 16)
    assert state["key"].shape == state["value"].shape == (3, 32, 2, 4)
    assert state["key"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(state["length"], [0, 0, 0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 4, "kv_heads": 3}, r"kv_heads: expected a divisor of heads \(4\)"),
        ({"heads": 3}, r"heads: expected a divisor of the width \(16\); got 3"),
        ({"window": -1}, "window: expected at least 1, or 0 for all tokens; got -1"),
    ],
)
def test_refuses_what_does_not_fit(fields, message):
    with pytest.raises(ReslabError, match=message):
        Attention(**fields).sizes(16)
