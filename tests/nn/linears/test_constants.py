"""A linear written outside the package, whose int8 weights are no parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.model_state import CONSTANTS
from reslab.core.parameters import constant, parameter
from reslab.core.trees import named_leaves, unbox
from reslab.nn.linears.dense import Dense


class Quantized(Dense):
    """Multiplies by int8 weights and a learned scale for each output."""

    @nn.compact
    def __call__(self, x):
        inputs = self.inputs_of(x)
        shape, axes = (*inputs, *self.outputs), self.kernel_axes

        def levels(key, shape, dtype):
            return jax.random.randint(key, shape, -127, 128, dtype)

        kernel = constant(self, "kernel", levels, shape, axes, jnp.int8)
        init = nn.initializers.constant(self.kernel_std(inputs) / 73)
        args = (self.outputs, self.output_axes, self.param_dtype)
        scale = parameter(self, "scale", init, *args)
        y = jnp.tensordot(x, kernel.astype(self.dtype), len(inputs))
        return y * scale.astype(self.dtype).reshape((1,) * 2 + self.outputs)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 24, (2, 8), dtype=np.int32)


def make(**fields):
    from reslab.models.lm import LanguageModel

    return LanguageModel(
        vocabulary_size=24,
        features=16,
        depth=2,
        mixer="attention(heads=2)",
        linear=Quantized,
        max_length=16,
        **fields,
    )


@pytest.mark.conformance
def test_constants_are_stacked_like_parameters(tokens):
    variables = unbox(make().init(jax.random.key(0), tokens))
    constants = named_leaves(variables[CONSTANTS])
    assert {leaf.dtype for leaf in constants.values()} == {jnp.dtype(jnp.int8)}
    scales = {n for n in named_leaves(variables["params"]) if n.endswith("/scale")}
    assert {n.replace("/kernel", "/scale") for n in constants} == scales
    for name, leaf in constants.items():
        assert leaf.shape[0] == 2, name
        # Every layer draws its own.
        assert np.any(leaf[0] != leaf[1]), name


@pytest.mark.conformance
@pytest.mark.parametrize(
    "residual, stack",
    [
        ("plain", "looped(loops=2)"),
        ("attnres", "uniform"),
        pytest.param("plain", "uniform", marks=pytest.mark.conformance),
        pytest.param("hyper(streams=2)", "uniform", marks=pytest.mark.conformance),
        pytest.param(
            "hyper(streams=2)", "looped(loops=2)", marks=pytest.mark.conformance
        ),
        pytest.param("attnres", "looped(loops=2)", marks=pytest.mark.conformance),
    ],
)
def test_scanned_is_unrolled_and_scales_learn(tokens, residual, stack):
    variables = unbox(
        make(residual=residual, stack=stack).init(jax.random.key(0), tokens)
    )
    results = []
    for is_unrolled in (False, True):
        model = make(residual=residual, stack=stack, is_unrolled=is_unrolled)

        def loss(params, model=model):
            logits = model.apply({**variables, "params": params}, tokens)
            return jnp.mean(jnp.square(logits)), logits

        results.append(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))
    (scanned, logits), unrolled = results[0], results[1]
    np.testing.assert_allclose(logits, unrolled[1], rtol=1e-4, atol=1e-5)
    for name, leaf in named_leaves(scanned).items():
        np.testing.assert_allclose(
            leaf, named_leaves(unrolled[0])[name], rtol=1e-3, atol=1e-5, err_msg=name
        )
        if name.endswith("/scale"):
            assert np.any(leaf != 0), name
