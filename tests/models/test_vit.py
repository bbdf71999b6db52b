import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, unbox
from reslab.models.vit import VisionTransformer


def make(**fields):
    defaults = {
        "image_shape": (8, 8, 3),
        "features": 16,
        "depth": 2,
        "mixer": "attention(heads=2)",
        "position": "learned",
    }
    return VisionTransformer(**defaults | fields)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def variables(images):
    return unbox(make().init(jax.random.key(0), images))


def test_patches_are_cut_row_by_row(images):
    patches = make(patch=4).patches(jnp.asarray(images))
    assert patches.shape == (2, 4, 48)
    for row in range(2):
        for column in range(2):
            cut = images[:, 4 * row :, 4 * column :][:, :4, :4]
            found = patches[:, 2 * row + column]
            np.testing.assert_array_equal(found, cut.reshape(2, 48))


@pytest.mark.conformance
def test_every_parameter_has_a_gradient(images, variables):
    def loss(params):
        logits = make().apply({"params": params}, images)
        assert logits.shape == (2, 10) and logits.dtype == jnp.float32
        return jnp.sum(jnp.sin(logits) * jnp.arange(10.0)[None])

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for name, leaf in named_leaves(gradient).items():
        assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0), name


def test_every_patch_sees_all_others(images, variables):
    # What the layers make of the first patch, if the last one is another.
    def first(images):
        def keep(module, _):
            return module.name == "layers"

        _, kept = make().apply(
            variables, images, capture_intermediates=keep, mutable="intermediates"
        )
        (streams,) = kept["intermediates"]["layers"]["__call__"]
        return streams[0][:, 0]

    other = images.copy()
    other[:, -2:, -2:] = 255 - other[:, -2:, -2:]
    assert not np.allclose(first(images), first(other), atol=1e-5)


def test_patches_divide_the_image(images):
    with pytest.raises(ReslabError, match="patch: expected a divisor of 8 and 8"):
        make(patch=3).init(jax.random.key(0), images)
