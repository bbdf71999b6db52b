"""What every mixer keeps that reads later tokens, as models of images have them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.models.vit import VisionTransformer
from reslab.observe.flops import count_flops

BATCH, LENGTH, WIDTH = 2, 8, 16
ALWAYS = [
    name
    for name in registry.names("mixers")
    if getattr(registry.unbound("mixers", name), "is_bidirectional", False)
]
OPTIONS = (
    "manhattan(form='axes', heads=2)",
    "mamba(is_bidirectional=True, state_size=2)",
    "retention(is_bidirectional=True, heads=2)",
)


@pytest.fixture(scope="module", params=(*ALWAYS, *OPTIONS))
def spec(request):
    return request.param


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(2), (BATCH, LENGTH, WIDTH))


@pytest.fixture(scope="module")
def mixer(spec, x, randomized):
    return make(spec, x, randomized)


def make(spec, x, randomized, **context):
    """The mixer, a function of (variables, x, ...), and moved parameters."""
    module = registry.make("mixers", spec, is_causal=False, **context)
    variables = jax.jit(module.init)(jax.random.key(0), x)

    def apply(variables, x, **keywords):
        return module.apply(variables, x, **keywords)

    return module, apply, randomized(variables)


def test_every_token_sees_every_other(mixer, x):
    """Or its neighbours, before it and after it, where the mixer says so."""
    module, apply, variables = mixer
    run = jax.jit(lambda x: apply(variables, x)[0])
    y = run(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    for t in (0, LENGTH - 1):
        change = np.asarray(jnp.abs(run(x.at[:, t].add(1.0)) - y))
        is_changed = np.max(change, axis=-1) > 1e-7
        if getattr(module, "is_local", False):
            near = 1 if t == 0 else LENGTH - 2
            assert np.all(is_changed[:, [t, near]]) and not np.all(is_changed)
        else:
            assert np.all(is_changed)


def test_documents_of_a_row_are_separate_or_refused(mixer, x):
    module, apply, variables = mixer
    segments = jnp.broadcast_to(jnp.where(jnp.arange(LENGTH) < 3, 1, 2), x.shape[:2])
    if hasattr(module, "grid"):
        with pytest.raises(ReslabError, match="one document in each row"):
            apply(variables, x, segments=segments)
        return
    packed = apply(variables, x, segments=segments)[0]
    alone = [apply(variables, part)[0] for part in (x[:, :3], x[:, 3:])]
    np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), atol=2e-6)


def test_does_not_generate(spec, mixer, x):
    module, apply, variables = mixer
    with pytest.raises(ReslabError, match="expected a causal mixer, to generate"):
        module.init_state(BATCH, LENGTH, WIDTH)
    with pytest.raises(ReslabError, match="expected a causal mixer, to generate"):
        apply(variables, x, state={})
    model = LanguageModel(vocabulary_size=8, features=16, depth=1, mixer=spec)
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    with pytest.raises(ReslabError, match="reads later tokens"):
        jax.eval_shape(model.init, jax.random.key(0), tokens)


def test_trains_in_a_vision_transformer(spec):
    model = VisionTransformer(features=16, depth=1, mixer=spec)
    images = jnp.zeros((2, 8, 8, 1))

    def slope(key):
        params = unbox(model.init(key, images))["params"]
        return jax.grad(lambda p: jnp.sum(model.apply({"params": p}, images)))(params)

    assert jax.tree.leaves(jax.eval_shape(slope, jax.random.key(0)))


def test_uses_every_parameter(mixer, x, assert_uses_every_parameter):
    _, apply, variables = mixer
    assert_uses_every_parameter(lambda v: apply(v, x)[0], variables)


def test_gradient_is_that_of_finite_differences(
    spec, x, randomized, x64, assert_gradient_is_slope
):
    x = np.asarray(x, np.float64)
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    _, apply, variables = make(spec, x, randomized, **wide)
    assert_gradient_is_slope(lambda v, x: apply(v, x)[0], variables, x)


def test_is_finite_in_bfloat16(spec, x, randomized):
    x = (100 * x).astype(jnp.bfloat16)
    _, apply, variables = make(spec, x, randomized, dtype=jnp.bfloat16)
    y, pull = jax.vjp(jax.jit(lambda v, x: apply(v, x)[0]), variables, x)
    assert y.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves((y, pull(jnp.ones_like(y)))):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))


def test_output_scale_reaches_the_projection_into_the_stream(spec, x):
    module = registry.make("mixers", spec, output_scale=0.0, is_causal=False)
    (y, _, _), _ = module.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, 0.0)


def test_costs_what_it_says(mixer, x):
    module, apply, variables = mixer
    leaves = named_leaves(unbox(variables))
    kernels = sum(leaf.size for name, leaf in leaves.items() if "kernel" in name)
    counted = count_flops(lambda v, x: apply(v, x)[0], variables, x)
    said = 2 * kernels + module.mixing_flops(LENGTH, WIDTH)
    assert counted == BATCH * LENGTH * said
