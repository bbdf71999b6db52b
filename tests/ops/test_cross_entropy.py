"""Cross-entropy: whole and chunked, against NumPy, in value, gradient and memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from reslab.core.errors import ReslabError
from reslab.ops.cross_entropy.api import (
    automatic_chunks,
    token_losses,
)
from reslab.ops.cross_entropy.shapes import SHAPES

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
VOCABULARY, COLUMNS = 45, 48


def inputs(dtype="float32", tokens=(3, 5), embed=8, columns=COLUMNS):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(*tokens, embed))
    kernel = generator.normal(size=(embed, columns))
    # The first and the last id are among the targets.
    targets = generator.integers(0, VOCABULARY, tokens)
    targets[0, :2] = 0, VOCABULARY - 1
    return (
        jnp.asarray(features, dtype),
        jnp.asarray(kernel, dtype),
        jnp.asarray(targets, jnp.int32),
    )


def oracle(features, kernel, targets, vocabulary_size=VOCABULARY):
    """Loss and gradients for cotangents `a` of nll and `b` of log_normalizer."""
    features, kernel = np.float64(features), np.float64(kernel)
    logits = (features @ kernel)[..., :vocabulary_size]
    log_normalizer = np.log(np.exp(logits).sum(-1))
    one_hot = np.eye(vocabulary_size)[targets]
    nll = log_normalizer - (logits * one_hot).sum(-1)

    def gradients(a, b):
        probability = np.exp(logits - log_normalizer[..., None])
        slope = (a + b)[..., None] * probability - a[..., None] * one_hot
        kernel_bar = np.zeros(kernel.shape)
        kernel_bar[:, :vocabulary_size] = np.tensordot(
            features, slope, (range(targets.ndim), range(targets.ndim))
        )
        return slope @ kernel[:, :vocabulary_size].T, kernel_bar

    return nll, log_normalizer, gradients


def close(actual, expected, tolerance):
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(np.float64(actual), expected, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 7, COLUMNS])
def test_values_and_gradients_equal_numpy(dtype, chunks):
    with jax.enable_x64(dtype == "float64"):
        features, kernel, targets = inputs(dtype)
        nll, log_normalizer, gradients = oracle(features, kernel, targets)
        a, b = np.random.default_rng(1).normal(size=(2, *targets.shape))
        run = jax.jit(
            lambda f, k: token_losses(
                f, k, targets, vocabulary_size=VOCABULARY, chunks=chunks
            )
        )
        outputs, vjp = jax.vjp(run, features, kernel)
        bars = vjp((jnp.asarray(a, dtype), jnp.asarray(b, dtype)))
    assert all(x.dtype == dtype for x in (*outputs, *bars))
    for actual, expected in zip(
        (*outputs, *bars), (nll, log_normalizer, *gradients(a, b)), strict=True
    ):
        close(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("chunks", [1, 4])
def test_padding_gets_no_probability(chunks):
    features, kernel, targets = inputs()
    # Were these columns seen, they would swallow all probability.
    kernel = kernel.at[:, VOCABULARY:].set(1e4 * jnp.sign(features[0, 0])[:, None])

    def total(kernel):
        losses = token_losses(
            features, kernel, targets, vocabulary_size=VOCABULARY, chunks=chunks
        )
        return jnp.sum(losses[0]), losses

    (_, (nll, _)), bar = jax.value_and_grad(total, has_aux=True)(kernel)
    close(nll, oracle(features, kernel, targets)[0], 1e-5)
    assert not np.any(bar[:, VOCABULARY:])
    assert np.all(np.any(bar[:, :VOCABULARY], axis=0))


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("outside", [-1, VOCABULARY, COLUMNS, 1000])
def test_a_target_outside_stays_finite(chunks, outside):
    features, kernel, targets = inputs()
    targets = targets.at[1, 2].set(outside)
    nll, log_normalizer = token_losses(
        features, kernel, targets, vocabulary_size=VOCABULARY, chunks=chunks
    )
    assert nll[1, 2] == log_normalizer[1, 2]
    assert np.all(np.isfinite(nll))


@pytest.mark.parametrize("chunks", [1, 4])
def test_both_outputs_have_their_gradients(chunks):
    with jax.enable_x64(True):
        features, kernel, targets = inputs("float64")
        nll, log_normalizer, gradients = oracle(features, kernel, targets)
        mask = np.arange(targets.size).reshape(targets.shape) % 3 > 0

        def loss(features, kernel):
            nll, log_normalizer = token_losses(
                features, kernel, targets, vocabulary_size=VOCABULARY, chunks=chunks
            )
            return jnp.sum((nll + 0.1 * jnp.square(log_normalizer)) * np.float64(mask))

        value, bars = jax.value_and_grad(loss, (0, 1))(features, kernel)
    np.testing.assert_allclose(value, ((nll + 0.1 * log_normalizer**2) * mask).sum())
    expected = gradients(np.float64(mask), 0.2 * log_normalizer * mask)
    for actual, wanted in zip(bars, expected, strict=True):
        close(actual, wanted, 1e-12)


@pytest.mark.parametrize("chunks", [1, 4])
def test_bfloat16_is_accumulated_in_float32(chunks):
    features, kernel, targets = inputs("bfloat16")
    nll, _, gradients = oracle(features, kernel, targets)
    run = functools.partial(
        token_losses, targets=targets, vocabulary_size=VOCABULARY, chunks=chunks
    )
    outputs, vjp = jax.vjp(run, features, kernel)
    assert {x.dtype.name for x in outputs} == {"float32"}
    close(outputs[0], nll, 1e-5)
    ones = np.ones(targets.shape)
    bars = vjp((jnp.asarray(ones, jnp.float32), jnp.zeros(targets.shape)))
    for actual, expected in zip(bars, gradients(ones, 0 * ones), strict=True):
        assert actual.dtype == jnp.bfloat16
        close(actual, expected, 1e-2)


def sizes(jaxpr):
    """Sizes of all arrays in a jaxpr, those of inner ones included."""
    for equation in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)


def largest_array(chunks, tokens=64, embed=8, columns=512):
    def loss(features, kernel, targets):
        nll, _ = token_losses(features, kernel, targets, chunks=chunks)
        return jnp.sum(nll)

    gradient = jax.grad(loss, (0, 1))
    shapes = [
        jax.ShapeDtypeStruct((tokens, embed), jnp.float32),
        jax.ShapeDtypeStruct((embed, columns), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    ]
    compiled = jax.jit(gradient).lower(*shapes).compile()
    return (
        max(sizes(jax.make_jaxpr(gradient)(*shapes).jaxpr)),
        compiled.memory_analysis().temp_size_in_bytes,
    )


@pytest.mark.optimized
def test_no_array_of_all_logits_exists():
    logits = 64 * 512
    whole, whole_bytes = largest_array(chunks=1)
    chunk, chunk_bytes = largest_array(chunks=16)
    assert whole >= logits
    # The largest array left is the kernel; a chunk of logits is smaller still.
    assert chunk == 8 * 512
    assert whole_bytes >= 4 * logits > 2 * chunk_bytes


@pytest.mark.optimized
@pytest.mark.parametrize("chunks", [1, 4])
def test_a_spread_vocabulary_changes_nothing(chunks):
    features, kernel, targets = inputs(tokens=(4, 5))

    def losses(features, kernel, targets):
        nll, log_normalizer = token_losses(
            features, kernel, targets, vocabulary_size=VOCABULARY, chunks=chunks
        )
        return jnp.sum(nll) + 0.1 * jnp.sum(jnp.square(log_normalizer))

    gradient = jax.value_and_grad(losses, (0, 1))
    expected = gradient(features, kernel, targets)
    mesh = jax.make_mesh(
        (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )
    batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    head = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(
                gradient,
                in_shardings=(batch, head, batch),
                out_shardings=(None, (batch, head)),
            )
            .lower(features, kernel, targets)
            .compile()
        )
        actual = compiled(
            jax.device_put(features, batch),
            jax.device_put(kernel, head),
            jax.device_put(targets, batch),
        )
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        close(a, np.float64(e), 1e-5)
    if chunks > 1:
        # A device multiplies by its own half of each chunk: 48 / 4 / 2 columns.
        text = compiled.as_text()
        assert "f32[8,6]" in text or "f32[6,8]" in text
        assert "all-to-all" not in text


def test_automatic_chunks_divide_real_vocabularies():
    for shape in SHAPES.values():
        chunks = automatic_chunks(shape["vocabulary"])
        assert shape["vocabulary"] <= 8192 * chunks < 2 * 8192 + 2 * shape["vocabulary"]
        if chunks > 1:
            assert shape["vocabulary"] % (8 * chunks) == 0


def test_bad_input_is_one_line():
    features, kernel, targets = inputs()
    for call in (
        lambda: token_losses(features, kernel, targets[:2]),
        lambda: token_losses(features, kernel[:4], targets),
        lambda: token_losses(features, kernel.astype(jnp.bfloat16), targets),
        lambda: token_losses(features, kernel, targets, vocabulary_size=COLUMNS + 1),
        lambda: token_losses(features, kernel, targets, chunks=-1),
    ):
        with pytest.raises(ReslabError, match=r"^[^\n]+expected [^\n]+$"):
            call()
