import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.nn.ffns.gelu import GELUFeedForward


def test_norms_inside_both_sublayers(small_variables):
    """Over the concatenated heads, and over the hidden width."""
    names = small_variables(placement="sub_ln", ffn="gelu(hidden=96)")
    body = "params/layers/body/segment_0/block_0"
    assert names[f"{body}/mixer/inner_norm/gain"].shape == (4, 64)
    assert names[f"{body}/ffn/inner_norm/gain"].shape == (4, 96)
    assert names[f"{body}/mixer_placement/input_norm/gain"].shape == (4, 64)


def test_the_inner_norm_precedes_the_output_projection(x64):
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(8, 12)), rng.normal(size=(12, 8))
    params = {
        "up": {"kernel": up},
        "down": {"kernel": down},
        "inner_norm": {"gain": rng.normal(size=12)},
    }
    x = rng.normal(size=(2, 3, 8))
    ffn = GELUFeedForward(
        hidden=12, inner_norm="rms", dtype=jnp.float64, param_dtype=jnp.float64
    )
    h = np.asarray(jax.nn.gelu(x @ up))
    h = h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + 1e-6)
    wanted = (h * (1 + params["inner_norm"]["gain"])) @ down
    np.testing.assert_allclose(ffn.apply({"params": params}, x), wanted, rtol=1e-9)


def test_branches_start_larger(small_variables):
    body = "params/layers/body/segment_0/block_0"
    sub = small_variables(placement="sub_ln", scales_output_by_depth=False)
    usual = small_variables(placement="pre", scales_output_by_depth=False)
    gamma = math.sqrt(math.log(8))
    for part, factor in {"query": 1, "value": gamma, "output": gamma}.items():
        name = f"{body}/mixer/{part}/kernel"
        ratio = np.std(sub[name]) / np.std(usual[name])
        np.testing.assert_allclose(ratio, factor, rtol=1e-4, err_msg=part)


def test_a_mixer_without_an_inner_norm_is_refused():
    def identity(**_):
        raise AssertionError

    model = LanguageModel(vocabulary_size=4, mixer=identity, placement="sub_ln")
    with pytest.raises(ReslabError, match="SubNorm puts a norm inside the mixer"):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32))


@pytest.mark.conformance
def test_generation_equals_the_forward_pass():
    """The cache holds keys and values; the inner norm comes after it."""
    model = LanguageModel(
        vocabulary_size=7,
        features=16,
        depth=2,
        mixer="attention(heads=2)",
        placement="sub_ln",
    )
    tokens = jax.random.randint(jax.random.key(1), (2, 5), 0, 7)
    variables = unbox(model.init(jax.random.key(0), tokens))
    whole, _ = model.apply(variables, tokens, method="hidden")
    state = model.init_state(2, 5)
    for t in range(5):
        one, state = model.apply(
            variables,
            tokens[:, t : t + 1],
            positions=jnp.full((2, 1), t),
            state=state,
            method="hidden",
        )
        np.testing.assert_allclose(one[:, 0], whole[:, t], rtol=1e-4, atol=1e-5)
