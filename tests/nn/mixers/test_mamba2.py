import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import count_bytes
from reslab.nn.mixers.mamba2 import Mamba2

DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
HEADS, SIZE, GROUPS, STATES = 8, 8, 2, 8


def converted(get, offset):
    """Parameters of `transformers`' Mamba2Mixer: width 32, two groups."""
    width, inner, keys = 32, HEADS * SIZE, GROUPS * STATES
    cuts = np.cumsum([inner, inner, keys, keys])
    gate, value, key, query, step = np.split(get("in_proj.weight"), cuts)
    taps, bias = (
        np.split(get(f"conv1d.{name}"), [inner, inner + keys])
        for name in ("weight", "bias")
    )
    shapes = {"value": (HEADS, SIZE), "key": (GROUPS, STATES)}
    shapes["query"] = shapes["key"]
    tree = {
        f"{name}_convolution": {
            "taps": taps[i][:, 0, ::-1].T.reshape(4, *shape),
            "bias": bias[i].reshape(shape),
        }
        for i, (name, shape) in enumerate(shapes.items())
    }
    for name, kernel in (("value", value), ("key", key), ("query", query)):
        tree[name] = {"kernel": kernel.T.reshape(width, *shapes[name])}
    return tree | {
        "gate": {"kernel": gate.T.reshape(width, HEADS, SIZE)},
        "step": {"kernel": step.T},
        "log_rate": get("A_log"),
        "step_bias": get("dt_bias"),
        "skip": get("D"),
        "gain": get("norm.weight").reshape(HEADS, SIZE) - offset,
        "output": {"kernel": get("out_proj.weight").T.reshape(HEADS, SIZE, width)},
    }


def test_golden_layer(golden, assert_golden):
    module = Mamba2(heads=HEADS, state_size=STATES, groups=GROUPS, **DOUBLE)
    assert_golden(module, golden("mamba2_layer"), converted)


def test_a_bidirectional_one_is_two_causal_ones(x64):
    x = np.random.default_rng(0).normal(size=(2, 5, 8))
    fields = {"heads": 2, "state_size": 4, **DOUBLE}
    module = Mamba2(is_bidirectional=True, **fields)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    segments = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 1]])
    y = module.apply(variables, x, segments=segments)[0]
    one = Mamba2(**fields)

    def part(name, x, segments):
        params = {"params": variables["params"][name]}
        return one.apply(params, x, segments=segments)[0]

    wanted = part("forward", x, segments)
    wanted = wanted + part("backward", x[:, ::-1], segments[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(y, wanted, atol=1e-12)


def test_a_bidirectional_one_does_not_generate():
    module = Mamba2(is_bidirectional=True)
    with pytest.raises(ReslabError, match="expected a causal mixer"):
        module.init_state(1, 8, 16)
    state = Mamba2().init_state(1, 8, 16)
    with pytest.raises(ReslabError, match="expected a causal mixer"):
        module.init(jax.random.key(0), jnp.zeros((1, 3, 16)), state=state)


def test_state_does_not_grow():
    module = Mamba2(state_size=8)
    state = module.init_state(3, 8, 16)
    assert state["memory"].shape == (3, 4, 8, 8)
    assert count_bytes(state) == count_bytes(module.init_state(3, 10_000, 16))


def test_starts_in_the_documented_range():
    params = Mamba2(heads=64).init(jax.random.key(0), jnp.zeros((1, 1, 64)))["params"]
    rate = np.exp(params["log_rate"])
    step = np.log1p(np.exp(params["step_bias"]))
    assert 1 <= rate.min() < 4 < 13 < rate.max() <= 16
    assert 1e-3 <= step.min() < 3e-3 < 3e-2 < step.max() <= 1.001e-1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"heads": 5},
            r"heads: expected a divisor of expansion \* width \(32\); got 5",
        ),
        ({"groups": 3}, r"groups: expected a divisor of heads \(4\); got 3"),
        ({"expansion": 0.01}, "heads: expected"),
    ],
)
def test_refuses_sizes_that_do_not_fit(fields, message):
    with pytest.raises(ReslabError, match=message):
        Mamba2(**fields).init_state(1, 1, 16)
