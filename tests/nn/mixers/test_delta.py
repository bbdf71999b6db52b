"""DeltaNet is Gated DeltaNet that forgets nothing; the rest is common to the family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.ops.delta_rule.api import delta_rule

X = np.random.default_rng(0).normal(size=(2, 19, 16)).astype("float32")


def drawn(module):
    rng = np.random.default_rng(1)
    shapes = unbox(jax.eval_shape(module.init, jax.random.key(0), X))["params"]
    draw = lambda leaf: rng.normal(size=leaf.shape).astype("float32")  # noqa: E731
    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("use_gate", [False, True])
def test_is_the_gated_one_without_its_decay(use_gate):
    options = "heads=2, head_dim=4, value_expansion=1.0"
    plain = registry.make("mixers", f"delta({options}, use_gate={use_gate})")
    gated = registry.make("mixers", f"gated_delta({options})")
    params = drawn(gated)
    params["log_rate"] = np.full_like(params["log_rate"], -100.0)
    kept = dict(params)
    for name in ("log_rate", "decay_bias", "decay", *([] if use_gate else ["gate"])):
        del kept[name]
    if not use_gate:
        # The silu of 1.2784645 is 1.
        gate = np.zeros_like(params["gate"]["kernel"])
        gate[-1] = 1.2784645
        params["gate"] = {"kernel": gate}
    x = jnp.asarray(X).at[..., -1].set(1.0)
    found, wanted = (
        jax.jit(module.apply)({"params": p}, x)[0]
        for module, p in ((plain, kept), (gated, params))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_one_convolution_is_three():
    options = "heads=4, head_dim=4, key_heads=2"
    joint = registry.make("mixers", f"kda({options}, is_convolution_combined=True)")
    split = registry.make("mixers", f"kda({options})")
    params = drawn(split)
    names = [f"{name}_convolution" for name in ("query", "key", "value")]
    taps = [params[name]["taps"].reshape(4, -1) for name in names]
    other = {name: p for name, p in params.items() if name not in names}
    other["convolution"] = {"taps": np.concatenate(taps, axis=1)}
    found, wanted = (
        jax.jit(module.apply)({"params": p}, X)[0]
        for module, p in ((joint, other), (split, params))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_decays_of_the_bounded_gate_start_near_none_and_stay_above_the_bound(
    monkeypatch,
):
    module = registry.make("mixers", "kda(heads=2, head_dim=4, lower_bound=-5.0)")
    x = jnp.zeros((1, 1, 8))
    start = unbox(jax.jit(module.init)(jax.random.key(0), x))["params"]
    assert np.all(np.asarray(start["log_rate"]) == 0)

    decays = []

    def record(query, key, value, beta, log_decay, **options):
        decays.append(np.asarray(log_decay))
        return delta_rule(query, key, value, beta, log_decay, **options)

    monkeypatch.setattr("reslab.nn.mixers._delta.delta_rule", record)
    for one in (x, 1e4 * jnp.ones((1, 1, 8))):
        module.apply({"params": start}, one)
    assert np.all((decays[0] > -0.6) & (decays[0] < 0))
    assert np.all(decays[1] >= -5) and np.any(decays[1] < -4.9)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("kda(heads=3)", "a divisor of the width"),
        ("delta(heads=4, key_heads=3)", "a divisor of heads"),
        ("delta(chunk=3)", "a power of two"),
    ],
)
def test_refuses_what_does_not_divide(spec, words):
    with pytest.raises(ReslabError, match=words):
        registry.make("mixers", spec).init_state(1, 4, 16)
