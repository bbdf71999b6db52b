"""What every placement keeps."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import unbox
from reslab.models.examples import run_example

WIDTH = 16


class Sublayer(nn.Module):
    """A placement with a residual beside it; returns the stream before and after."""

    placement: str
    residual: str

    @nn.compact
    def __call__(self, x):
        residual = registry.make("residuals", self.residual)
        placement = registry.make("placements", self.placement)
        stream = residual.widen(x)
        return stream, placement(stream, residual, jnp.tanh, site=0)


# What depends on the layer or the site; the others are the same in every layer.
BY_DEPTH = ("mix_ln", "ln_scaling", "hybrid_star", "deepnorm", "layer_norm_removal")


@pytest.fixture(scope="module", params=registry.names("placements"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def stream():
    return jax.random.normal(jax.random.key(2), (2, 8, WIDTH))


@pytest.fixture(scope="module")
def placement(name, randomized):
    """The placement around tanh on a plain residual, as a function."""
    module = registry.make("placements", name)
    variables = randomized(run_example("placements", name, WIDTH)[1])
    plain = registry.make("residuals", "plain", parent=None)

    def apply(variables, stream, site=0, branch=jnp.tanh):
        return module.apply(variables, stream, plain, branch, site=site)

    return apply, variables


@pytest.mark.parametrize("dtype", [jnp.bfloat16])
@pytest.mark.parametrize("residual", registry.names("residuals"))
def test_keeps_the_stream_of_every_residual(name, residual, stream, dtype):
    sublayer = Sublayer(name, residual)
    (before, after), _ = jax.eval_shape(
        sublayer.init_with_output, jax.random.key(0), stream.astype(dtype)
    )
    assert after == before


def test_calls_the_branch_once(placement, stream):
    apply, variables = placement
    calls = []

    def branch(h):
        calls.append(h.shape)
        return h

    apply(variables, stream, branch=branch)
    assert calls == [stream.shape]


def test_takes_a_traced_site(placement, stream, assert_close):
    apply, variables = placement
    traced = jax.jit(apply)(variables, stream, jnp.int32(3))
    assert_close(traced, apply(variables, stream, 3), 1e-6)


def test_uses_every_parameter(placement, stream, assert_uses_every_parameter):
    apply, variables = placement
    assert_uses_every_parameter(lambda v: apply(v, stream), variables)


@pytest.mark.conformance
def test_the_head_reads_normalized_features(name, small_model, tokens):
    depth = 6 if name in BY_DEPTH else 1
    model = small_model(placement=name, depth=depth, norm="rms")
    (features, _), _ = jax.jit(
        functools.partial(model.init_with_output, method="hidden")
    )(jax.random.key(0), tokens)
    mean_square = np.mean(np.square(features), axis=-1)
    # Without any norm the head must cope with whatever comes.
    is_close = np.allclose(mean_square, 1.0, rtol=1e-3)
    assert is_close == (name != "none")


def test_scanned_is_unrolled(
    name, small_model, drawn, tokens, logits_and_gradient, assert_close
):
    if name not in BY_DEPTH:
        model = small_model(placement=name)
        shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
        assert list(shapes["params"]["layers"]["body"]) == ["segment_0"]
        return
    model = small_model(placement=name)
    params = drawn(model, tokens)["params"]
    unrolled = small_model(placement=name, is_unrolled=True)
    assert_close(
        logits_and_gradient(unrolled, params, tokens),
        logits_and_gradient(model, params, tokens),
        1e-10,
    )


def test_stores_parameters_in_the_dtype_asked_for(name, stream):
    module = registry.make("placements", name, param_dtype=jnp.bfloat16)
    plain = registry.make("residuals", "plain", parent=None)
    variables = module.init(jax.random.key(0), stream, plain, jnp.tanh, site=0)
    for leaf in jax.tree.leaves(unbox(variables)):
        assert leaf.dtype == jnp.bfloat16
