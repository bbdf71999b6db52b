import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.model_state import BATCH_STATS
from reslab.core.trees import named_leaves, unbox
from reslab.models._classifier import as_floats
from reslab.models.resnet import ResNet
from reslab.parallel.mesh import batch_sharding, make_mesh, use_mesh


def make(**fields):
    defaults = {"classes": 10, "image_shape": (8, 8, 1), "features": 8, "stages": 1}
    return ResNet(**defaults | fields)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)).astype(np.uint8)


@pytest.mark.parametrize("norm", ["batch", "group", "evonorm_b0", "evonorm_s0", "rms"])
def test_takes_any_norm_or_norm_and_activation(norm, images):
    variables = jax.eval_shape(make(norm=norm).init, jax.random.key(0), images)
    logits = jax.eval_shape(make(norm=norm).apply, variables, images)
    assert logits.shape == (8, 10)
    assert logits.dtype == jnp.float32
    has_state = norm in ("batch", "evonorm_b0")
    assert (BATCH_STATS in variables) == has_state


def test_integers_become_minus_one_to_one(images):
    floats = as_floats(images, np.float32)
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(as_floats(floats, np.float32), floats)


def test_strides_are_those_of_the_kernels(images):
    model = make(depth=2, stages=3)
    variables = unbox(jax.eval_shape(model.init, jax.random.key(0), images))
    kernels = {
        name
        for name in named_leaves(variables["params"])
        if name.endswith("kernel") and name.split("/")[0] not in ("stem", "head")
    }
    strides = model.strides()
    assert strides.keys() == kernels
    assert sum(stride == 2 for stride in strides.values()) == 4


def test_statistics_are_those_of_all_devices(images):
    model = make(norm="batch")
    variables = unbox(jax.jit(model.init)(jax.random.key(0), images))

    def run(variables, images):
        return model.apply(variables, images, mutable=[BATCH_STATS])

    logits, state = jax.jit(run)(variables, images)
    mesh = make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    with use_mesh(mesh):
        spread = jax.device_put(images, batch_sharding(mesh))
        parted, spread_state = jax.jit(run)(variables, spread)
    np.testing.assert_allclose(parted, logits, rtol=2e-5, atol=2e-5)
    for name, leaf in named_leaves(spread_state).items():
        np.testing.assert_allclose(
            leaf, named_leaves(state)[name], rtol=2e-5, atol=1e-6, err_msg=name
        )
