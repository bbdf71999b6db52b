import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.models.lm import LanguageModel
from reslab.nn.ffns.gelu import GELUFeedForward
from reslab.nn.ffns.swiglu import SwiGLU


def oracle_norm(h, gain):
    return h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + 1e-6) * (1 + gain)


@pytest.mark.parametrize("is_gated", [False, True])
def test_equation_and_freedom_of_scale(x64, is_gated):
    rng = np.random.default_rng(0)
    names = ("gate", "up") if is_gated else ("up",)
    params = {name: {"kernel": rng.normal(size=(8, 12))} for name in names}
    params |= {f"{name}_norm": {"gain": rng.normal(size=12)} for name in names}
    params["down"] = {"kernel": rng.normal(size=(12, 8))}
    x = rng.normal(size=(2, 3, 8))
    kind = SwiGLU if is_gated else GELUFeedForward
    ffn = kind(
        hidden=12, activation_norm="rms", dtype=jnp.float64, param_dtype=jnp.float64
    )
    halves = [
        oracle_norm(x @ params[name]["kernel"], params[f"{name}_norm"]["gain"])
        for name in names
    ]
    h = np.asarray(
        jax.nn.silu(halves[0]) * halves[1] if is_gated else jax.nn.gelu(halves[0])
    )
    y, pull = jax.vjp(lambda p, x: ffn.apply({"params": p}, x), params, jnp.asarray(x))
    np.testing.assert_allclose(y, h @ params["down"]["kernel"], rtol=1e-9)
    slopes, _ = pull(jnp.ones_like(y))
    for name in names:
        # Nothing changes along the kernel itself, but for the norm's epsilon.
        along = np.sum(slopes[name]["kernel"] * params[name]["kernel"])
        assert abs(along) < 1e-5 * np.linalg.norm(slopes[name]["kernel"])


def test_norms_of_a_model(small_variables):
    names = small_variables(placement="pre_activation", ffn="swiglu(hidden=96)")
    body = "params/layers/body/segment_0/block_0"
    for half in ("gate", "up"):
        assert names[f"{body}/ffn/{half}_norm/gain"].shape == (4, 96)
    assert names[f"{body}/ffn_placement/input_norm/gain"].shape == (4, 64)
    plain = small_variables(placement="pre", ffn="swiglu(hidden=96)")
    assert not any("gate_norm" in name for name in plain)


def test_an_ffn_without_a_place_for_it_is_refused():
    def identity(**_):
        raise AssertionError

    model = LanguageModel(vocabulary_size=4, ffn=identity, placement="pre_activation")
    with pytest.raises(ReslabError, match="puts a norm inside the ffn"):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32))
