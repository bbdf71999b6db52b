import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.nn.linears.dense import Dense
from reslab.nn.linears.zero_mean import ZeroMean


def test_golden(golden_set, assert_golden):
    data = golden_set("crmsnorm", "linzm_")

    def parameters(prefix):
        stem = {"p_": "param_", "grad_p_": "grad_"}[prefix]
        return {"kernel": data[f"{stem}weight"].T, "bias": data[f"{stem}bias"]}

    linear = ZeroMean(len(data["param_bias"]), ("mlp", "embed"), use_bias=True)
    assert_golden(linear, data, parameters)


@pytest.mark.parametrize(
    ("features", "axes"),
    [(6, ("embed", "mlp")), ((2, 3), ("embed", "heads", "head_dim"))],
)
def test_what_does_not_write_to_the_stream_is_dense(features, axes):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8)), jnp.float32)
    one, other = (kind(features, axes, use_bias=True) for kind in (ZeroMean, Dense))
    y, variables = one.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, other.apply(variables, x))


def test_learns_what_layer_normalization_does(x64):
    """Two steps of a pre-norm model with either, from the same parameters."""
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64, "is_unrolled": True}
    small = {"vocabulary_size": 11, "features": 8, "depth": 1, "embedding_std": 1.0}
    parts = {"mixer": "attention(heads=2, use_bias=True)", "ffn": "gelu(hidden=8)"}
    layer = LanguageModel(
        norm="layer(use_bias=False, epsilon=1e-5)", **small, **parts, **wide
    )
    recentred = LanguageModel(
        norm="rms(epsilon=1e-5)",
        linear="zero_mean",
        post_embedding_norm="centre",
        **small,
        **parts,
        **wide,
    )
    tokens = np.random.default_rng(0).integers(11, size=(2, 2, 5))
    start = unbox(layer.init(jax.random.key(0), tokens[0])["params"])
    start = jax.tree.map(lambda leaf: leaf + 0.1, start)
    ends = []
    for model in (layer, recentred):
        sgd, params = optax.sgd(0.5), start

        def loss(params, batch, model=model):
            logits = model.apply({"params": params}, batch)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits[:, :-1], batch[:, 1:]
            ).mean()

        step = jax.jit(jax.value_and_grad(loss))
        losses = []
        for batch in tokens:
            value, slopes = step(params, batch)
            losses.append(value)
            params = optax.apply_updates(params, sgd.update(slopes, sgd.init(None))[0])
        ends.append((losses, named_leaves(params)))
    (losses, wanted), (other_losses, found) = ends
    np.testing.assert_allclose(other_losses, losses, rtol=1e-7)
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-6, atol=1e-7)
