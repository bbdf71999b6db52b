"""What every projection keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import named_leaves, unbox

# Inputs, output axes and logical names as the parts of a model ask for them.
USES = {
    "one axis": ((2, 3, 8), 12, ("embed", "mlp")),
    "to heads": ((2, 3, 8), (2, 4), ("embed", "heads", "head_dim")),
    "from heads": ((2, 3, 2, 4), 8, ("heads", "head_dim", "embed")),
}


@pytest.fixture(scope="module", params=registry.names("linears"))
def name(request):
    return request.param


@pytest.fixture(scope="module", params=USES)
def use(request):
    shape, features, axes = USES[request.param]
    return jax.random.normal(jax.random.key(2), shape), features, axes


@pytest.fixture
def linear(name, use, randomized):
    x, features, axes = use
    module = registry.make(
        "linears", name, features=features, kernel_axes=axes, use_bias=True
    )
    return module.apply, randomized(module.init(jax.random.key(0), x)), x


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_dtype_are_those_asked_for(name, use, dtype):
    x, features, axes = use
    module = registry.make(
        "linears", name, features=features, kernel_axes=axes, use_bias=True, dtype=dtype
    )
    y, variables = module.init_with_output(jax.random.key(0), x)
    wide = (features,) if isinstance(features, int) else features
    assert y.shape == (*x.shape[: x.ndim + len(wide) - len(axes)], *wide)
    assert y.dtype == dtype
    for leaf in jax.tree.leaves(unbox(variables)):
        assert leaf.dtype == jnp.float32


def test_stores_parameters_in_the_dtype_asked_for(name, use):
    x, features, axes = use
    module = registry.make(
        "linears",
        name,
        features=features,
        kernel_axes=axes,
        use_bias=True,
        param_dtype=jnp.bfloat16,
    )
    y, variables = module.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.float32
    for leaf in jax.tree.leaves(unbox(variables)):
        assert leaf.dtype == jnp.bfloat16


def test_has_a_bias_only_if_asked_for(name, use):
    x, features, axes = use

    def parameters(use_bias):
        module = registry.make(
            "linears", name, features=features, kernel_axes=axes, use_bias=use_bias
        )
        return named_leaves(unbox(module.init(jax.random.key(0), x)))

    with_bias, without = parameters(True), parameters(False)
    added = {key.rpartition("/")[2] for key in set(with_bias) - set(without)}
    assert added == {"bias"}


def test_keeps_the_size_of_its_input_at_the_start(name):
    x = jax.random.normal(jax.random.key(1), (64, 128))

    # One may mean its kernel to start smaller, and leave room for something else.
    start = getattr(registry.make("linears", name, features=128), "kernel_scale", 1.0)

    def deviation(**fields):
        module = registry.make("linears", name, features=128, **fields)
        y, _ = module.init_with_output(jax.random.key(0), x)
        return float(jnp.std(y)) / start

    assert deviation() == pytest.approx(1.0, rel=0.1)
    assert deviation(scale=0.25) == pytest.approx(deviation() / 4, rel=1e-4)
    assert deviation(init_std=0.02) == pytest.approx(0.02 * 128**0.5, rel=0.1)


def test_compiled_is_eager(linear, assert_close):
    apply, variables, x = linear
    assert_close(jax.jit(apply)(variables, x), apply(variables, x), 1e-6)


def test_uses_every_parameter(linear, assert_uses_every_parameter):
    apply, variables, x = linear
    assert_uses_every_parameter(lambda v: apply(v, x), variables)


def test_gradient_is_that_of_finite_differences(
    name, use, randomized, x64, assert_gradient_is_slope
):
    x, features, axes = use
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    module = registry.make("linears", name, features=features, kernel_axes=axes, **wide)
    x = np.asarray(x, np.float64)
    variables = randomized(module.init(jax.random.key(0), x))
    assert_gradient_is_slope(module.apply, variables, x)
