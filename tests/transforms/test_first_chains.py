"""The first chains of a model are a smaller model, exactly, at every depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import config as configs
from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.transforms import first_chains

TOKENS = np.random.default_rng(0).integers(0, 11, (2, 6), dtype=np.int32)
BASE = {
    "model.features": 16,
    "model.depth": 2,
    "model.mixer": "attention(heads=4)",
    "model.linear": "chain(chains=(1, 1, 2))",
    "model.norm": "chain_rms(chains=(1, 1, 2))",
    "model.post_embedding_norm": "chain_rms(chains=(1, 1, 2))",
}
AIR = {
    "model.mixer": "attention(heads=8, kv_heads=2, is_kv_cyclic=True)",
    "model.linear": "chain(chains=(1, 1, 2), is_kv_shared=True)",
}
CASES = {
    "default": {},
    "air, tied, learned positions, post": {
        **AIR,
        "model.tie_embeddings": True,
        "model.position": "learned",
        "model.placement": "post",
    },
    "grouped, macaron, inner norms, biases": {
        "model.mixer": "attention(heads=8, kv_heads=4, qk_norm='rms', use_bias=True, "
        "value_path='value_residual')",
        "model.ffn": "gelu(hidden=24, use_bias=True)",
        "model.block": "macaron",
        "model.placement": "sub_ln",
    },
}


def flat(**changes):
    config = configs.update(configs.load("base"), {**BASE, **changes}.items())
    return dict(configs.flatten(config))


def model_of(fields):
    parts = {
        key.removeprefix("model."): value
        for key, value in fields.items()
        if key.startswith("model.") and key != "model.loop"
    }
    return LanguageModel(
        vocabulary_size=11,
        max_length=8,
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        **parts,
    )


def shapes(fields):
    made = jax.eval_shape(model_of(fields).init, jax.random.key(0), TOKENS)
    return unbox(made)["params"]


def trained(fields):
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * random.normal(size=leaf.shape)), shapes(fields)
    )


def features_and_logits(fields, params):
    def run(params):
        model, variables = model_of(fields), {"params": params}
        x, _ = model.apply(variables, TOKENS, method="hidden")
        return x, model.apply(variables, x, method="logits")

    return jax.jit(run)(params)


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_whole_model(case, x64):
    fields = flat(**CASES[case])
    params = trained(fields)
    whole, _ = features_and_logits(fields, params)
    for count, width in ((1, 4), (2, 8), (3, 16)):
        found, changes = registry.make(
            "transforms",
            f"first_chains(count={count})",
            variables={"params": params},
            fields=fields,
        )
        new = found["params"]
        config = configs.update(configs.load("base"), (fields | changes).items())
        configs.check(config)
        smaller = dict(configs.flatten(config))
        wanted = {
            name: leaf.shape for name, leaf in named_leaves(shapes(smaller)).items()
        }
        found = {name: leaf.shape for name, leaf in named_leaves(new).items()}
        assert found == wanted
        x, logits = features_and_logits(smaller, new)
        np.testing.assert_allclose(x, whole[..., :width], rtol=1e-12, atol=1e-12)
        kernel = params["embedding"].T if "head" not in params else params["head"]
        np.testing.assert_allclose(
            logits, (whole[..., :width] @ kernel[:width])[..., :11], rtol=1e-10
        )


@pytest.mark.parametrize(
    ("changes", "count", "message"),
    [
        ({}, 4, "count: expected between 1 and the model's 3 chains; got 4"),
        ({"model.linear": "dense"}, 1, "model.linear: expected chain; got 'dense'"),
        ({"model.norm": "rms"}, 1, r"model.norm: expected chain_rms\(chains=\(1, 1, 2"),
        ({"model.norm": "chain_rms"}, 1, r"got 'chain_rms'"),
        ({"model.mixer": "gated_delta"}, 1, "model.mixer: expected attention"),
        (
            {"model.linear": "chain(chains=(1, 1, 2), is_kv_shared=True)"},
            1,
            r"expected attention\(is_kv_cyclic=True\)",
        ),
        ({"model.residual": "hyper"}, 1, "expected plain or reversible"),
    ],
)
def test_refuses_what_does_not_consist_of_chains(changes, count, message):
    with pytest.raises(ReslabError, match=message):
        first_chains.build({"params": {}}, flat(**changes), count=count)
