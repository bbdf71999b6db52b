"""A depth memory beside a history: rolled, the layers are those of the list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel

TOKENS = np.random.default_rng(3).integers(0, 8, (1, 3), dtype=np.int32)
HISTORIES = [
    name
    for name in registry.names("residuals")
    if getattr(registry.module("residuals", name).build, "is_history", False)
]
# One pair in a usual run, and all of them in a long one.
USUAL = {("elc_bert", "shared_values")}
COMMON = {("dca", "shared_kv"), ("denseformer", "shared_kv")}
PAIRS = [
    pytest.param(
        residual,
        path,
        marks=(
            ()
            if (residual, path) in USUAL
            else pytest.mark.conformance
            if (residual, path) in COMMON
            else pytest.mark.exhaustive
        ),
    )
    for residual in HISTORIES
    for path in registry.names("value_paths")
]


@pytest.mark.conformance
@pytest.mark.parametrize("residual, path", PAIRS)
def test_rolled_is_listed(x64, residual, path):
    def model(**fields):
        return LanguageModel(
            vocabulary_size=8,
            features=4,
            depth=3,
            ffn="gelu(hidden=4)",
            mixer=f"attention(heads=2, value_path='{path}')",
            residual=residual,
            dtype=jnp.float64,
            param_dtype=jnp.float64,
            **fields,
        )

    shapes = unbox(jax.eval_shape(model().init, jax.random.key(0), TOKENS))["params"]
    rng = np.random.default_rng(7)
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape), shapes)

    def gradient(model):
        def loss(params):
            logits = model.apply({"params": params}, TOKENS)
            return jnp.sum(jnp.sin(logits)), logits

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    wanted = named_leaves(gradient(model(is_unrolled=True)))
    for name, found in named_leaves(gradient(model())).items():
        size = np.max(np.abs(wanted[name]), initial=1e-9)
        np.testing.assert_allclose(
            found, wanted[name], rtol=0, atol=1e-10 * size, err_msg=name
        )
