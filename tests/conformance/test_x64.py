"""Under `JAX_ENABLE_X64`, Python's integers are of 64 bits: nothing depends on that."""

import jax
import jax.numpy as jnp
import pytest

from reslab.core import registry
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.train.generate import continue_prompts

FAMILIES = {
    "mixer": "mixers",
    "ffn": "ffns",
    "norm": "norms",
    "placement": "placements",
    "block": "blocks",
    "residual": "residuals",
    "stack": "stacks",
    "linear": "linears",
    "position": "positions",
}
MORE = [
    ("mixer", "attention(heads=2, window=3)"),
    ("mixer", "attention(heads=2, kv_heads=1, qk_norm='rms')"),
    *(
        ("mixer", f"attention(heads=2, value_path={name!r})")
        for name in registry.names("value_paths")
    ),
]
# Norms that contain an activation are not for transformers, mixers that read later
# tokens not for language.
PARTS = [
    *(
        (field, name)
        for field, family in FAMILIES.items()
        for name in registry.names(family)
        if not name.startswith("evonorm")
        and not getattr(registry.module(family, name).build, "is_bidirectional", False)
    ),
    *MORE,
]


# The parts that know of tokens and their places.
ORDERED = ("mixer", "position", "block", "stack")
CASES = [
    pytest.param(
        *(field, spec, is_unrolled),
        marks=[] if field in ORDERED and is_unrolled else pytest.mark.conformance,
    )
    for field, spec in PARTS
    for is_unrolled in (True, False)
]


@pytest.mark.parametrize(("field", "spec", "is_unrolled"), CASES)
def test_generation_and_gradients(field, spec, is_unrolled):
    with jax.enable_x64(True):
        model = LanguageModel(
            **{
                "vocabulary_size": 7,
                "features": 16,
                "depth": 3 if field == "stack" else 2,
                "mixer": "attention(heads=2)",
                "max_length": 16,
                "is_unrolled": is_unrolled,
                "residual": "reversible" if spec == "reversible" else "plain",
                field: spec,
            }
        )
        tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        variables = unbox(jax.eval_shape(model.init, key, tokens))

        def continued(variables, tokens, key):
            return continue_prompts(model, variables, tokens, 4, key, temperature=1.0)

        found = jax.eval_shape(continued, variables, tokens, key)
        assert (found.shape, found.dtype) == ((2, 4), jnp.int32)

        def loss(params, others, tokens, key):
            names = ("dropout", "params")
            out, _ = model.apply(
                {**others, "params": params},
                tokens,
                tokens,
                segments=jnp.ones(tokens.shape, jnp.int32),
                method="losses",
                mutable=True,
                rngs=dict(zip(names, jax.random.split(key), strict=True)),
            )
            return jnp.sum(out[0])

        others = {k: v for k, v in variables.items() if k != "params"}
        jax.eval_shape(jax.grad(loss), variables["params"], others, tokens, key)
