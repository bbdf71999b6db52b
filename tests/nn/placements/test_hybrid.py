"""Norms inside attention, and on the stream before the feed-forward layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.models.lm import LanguageModel
from reslab.nn.placements.hybrid import HybridNorm
from reslab.nn.residuals.plain import Plain


def rms(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def test_the_normalized_stream_is_what_is_added_to(x64):
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    params = {"params": {"stream_norm": {"gain": np.zeros(8)}}}
    placement = HybridNorm(sublayer="ffn", param_dtype=jnp.float64)
    y = placement.apply(params, x, Plain(), jnp.tanh, site=1)
    np.testing.assert_allclose(y, rms(x) + np.tanh(rms(x)), rtol=1e-9)


def test_the_mixer_reads_the_stream_as_it_is():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    y = HybridNorm(sublayer="mixer").apply({}, x, Plain(), jnp.tanh, site=0)
    np.testing.assert_array_equal(y, x + jnp.tanh(x))


def test_heads_have_norms_of_their_own(small_variables):
    names = small_variables(placement="hybrid")
    body = "params/layers/body/segment_0/block_0"
    for part in ("query", "key", "value"):
        assert names[f"{body}/mixer/{part}_norm/gain"].shape == (4, 32)
    assert not [name for name in names if "mixer_placement" in name]


def test_a_mixer_without_heads_to_normalize_is_refused():
    model = LanguageModel(
        vocabulary_size=4, mixer="gated_delta(heads=2)", placement="hybrid"
    )
    with pytest.raises(ReslabError, match=r"inside the mixer.*gated_delta"):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32))
