import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.nn.base.coupling import Coupled

TOKENS = np.random.default_rng(0).integers(0, 21, (2, 8), dtype=np.int32)


def make(block, **fields):
    defaults = {
        "vocabulary_size": 21,
        "features": 16,
        "depth": 3,
        "mixer": "attention(heads=2)",
        "ffn": "swiglu(hidden=32)",
        "residual": "reversible",
    }
    return LanguageModel(block=block, **defaults | fields)


def start(model, tokens=TOKENS):
    """Parameters as training might leave them, without compiling anything."""
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: np.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype),
        shapes,
    )


def gradient(model, params, tokens=TOKENS, **keywords):
    weights = np.random.default_rng(2).normal(size=(*tokens.shape, 21))

    def weighted(params):
        logits = model.apply({"params": params}, tokens, **keywords)
        return jnp.sum(weights.astype(logits.dtype) * logits)

    return jax.jit(jax.value_and_grad(weighted))(params)


@pytest.mark.conformance
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            {"is_unrolled": True, "placement": "peri"}, marks=pytest.mark.conformance
        ),
        {"stack": "looped(loops=2)", "depth": 2, "placement": "ln_scaling"},
        # The first period writes, so it is kept; the others read what it wrote.
        {
            "mixer": (
                "attention(heads=2, value_path='value_residual')",
                "gated_delta(heads=2)",
            ),
            "depth": 4,
        },
    ],
    ids=str,
)
def test_gradients_are_those_of_keeping_everything(fields, x64):
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    undone, kept = (
        make("reversible", **fields, **wide),
        make("standard", **fields, **wide),
    )
    params = start(undone)
    segments = np.broadcast_to(np.arange(8) // 4, TOKENS.shape)
    positions = np.broadcast_to(np.arange(8) % 4, TOKENS.shape)
    packed = {"segments": segments, "positions": positions}
    value, found = gradient(undone, params, **packed)
    expected, wanted = gradient(kept, params, **packed)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    wanted = named_leaves(wanted)
    for name, leaf in named_leaves(found).items():
        size = np.max(np.abs(wanted[name]))
        np.testing.assert_allclose(
            leaf, wanted[name], rtol=0, atol=1e-10 * size, err_msg=name
        )


def test_24_layers_are_undone_to_a_rounding_in_float32():
    model = make("reversible", depth=24)
    stack = model.make_stack(parent=None)
    x = np.random.default_rng(3).normal(size=(2, 8, 16)).astype(np.float32)
    params = unbox(jax.jit(model.init)(jax.random.key(0), TOKENS))["params"]
    params = params["layers"]["body"]["segment_0"]["block_0"]
    block = stack.blocks[0](parent=None)
    around = {"positions": np.broadcast_to(np.arange(8), (2, 8))}

    @jax.jit
    def there_and_back(params, x):
        def layer(stream, scanned):
            params, index = scanned
            after, _, _ = block.apply(
                {"params": params}, stream, {}, layer=index, **around
            )
            return after, None

        def undo(stream, scanned):
            params, index = scanned
            before, _, _, _ = block.backward(
                params, stream, stream, {}, layer=index, segments=None, **around
            )
            return before, None

        scanned = params, jnp.arange(24)
        begin = Coupled.start(x)
        end, _ = jax.lax.scan(layer, begin, scanned)
        return end, jax.lax.scan(undo, end, scanned, reverse=True)[0]

    end, begin = there_and_back(params, x)
    assert np.max(np.abs(end.newer - x)) > 0.5  # There was something to undo.
    for stream in (begin.older, begin.newer):
        np.testing.assert_allclose(stream, x, rtol=0, atol=1e-5)


def temporary_bytes(depth, **fields):
    model = make(depth=depth, features=32, **fields)
    tokens = np.zeros((32, 64), np.int32)  # Enough for activations to outweigh weights.
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))

    def loss(variables):
        return jnp.mean(model.apply(variables, tokens, tokens, method="losses")[0])

    compiled = jax.jit(jax.grad(loss)).lower(shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.conformance  # The backward pass of 24 layers in every run.
@pytest.mark.optimized
def test_memory_does_not_grow_with_depth():
    deep = temporary_bytes(24, block="reversible")
    assert deep <= 1.01 * temporary_bytes(6, block="reversible")
    assert temporary_bytes(24, block="standard") > 5 * deep


@pytest.mark.exhaustive  # Half a minute; scanned layers in every run.
@pytest.mark.optimized
def test_memory_hardly_grows_with_depth_where_layers_are_unrolled():
    deep = temporary_bytes(9, block="reversible", is_unrolled=True)
    assert deep <= 1.1 * temporary_bytes(3, block="reversible", is_unrolled=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"residual": "plain"}, "expected residual 'reversible'; got 'plain'"),
        ({"placement": "post"}, "not the stream; got PostNorm"),
        ({"placement": "deepnorm"}, "not the stream; got DeepNorm"),
        ({"placement": "hybrid"}, "not the stream; got HybridNorm"),
        ({"placement": "mix_ln(alpha=0.5)"}, "not the stream; got PostNorm"),
    ],
)
def test_what_cannot_be_undone_is_refused(fields, message):
    with pytest.raises(ReslabError, match=message) as error:
        jax.eval_shape(make("reversible", **fields).init, jax.random.key(0), TOKENS)
    assert "\n" not in str(error.value)
