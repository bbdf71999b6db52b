import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.observe.probes.kurtosis import excess_kurtosis
from reslab.observe.watch import CannotAnswer


def test_golden(golden, x64):
    data = golden("excess_kurtosis")
    found = excess_kurtosis(jnp.asarray(data["dev_x"]))
    wanted = data["dev_per_token_unrectified"]
    np.testing.assert_allclose(found, np.maximum(wanted, 0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        np.mean(found), data["dev_excess_kurtosis"], rtol=1e-9, atol=1e-12
    )
    assert np.any(wanted < 0)


@pytest.mark.conformance
def test_tokens_alone_are_sequences_of_one(view_of, small_model):
    model, params, tokens = small_model()
    view = view_of(model, params, tokens)
    apart = view_of(model, params, tokens.reshape(-1, 1))

    def ask(view, **options):
        probe = registry.make("probes", "kurtosis", **options)
        with jax.numpy_dtype_promotion("standard"):
            return np.asarray(jax.jit(lambda: probe(view)["excess"])())

    found = ask(view, is_alone=True)
    np.testing.assert_allclose(found, ask(apart), rtol=1e-4, atol=1e-5)
    with_context = ask(view)
    np.testing.assert_allclose(found[0], with_context[0], rtol=1e-5)  # The embedding.
    assert np.max(np.abs(found - with_context)) > 1e-3
    without = dataclasses.replace(view, forward_alone=None)
    with pytest.raises(CannotAnswer, match="tokens without context: expected a model"):
        registry.make("probes", "kurtosis", is_alone=True)(without)
