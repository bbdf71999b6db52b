import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import named_leaves, unbox
from reslab.data.images import load_images
from reslab.models.frames import FrameClassifier


def make(frames=4, **fields):
    defaults = {"classes": 3, "image_shape": (8, 8, frames), "channels": 4}
    defaults |= {"features": 8, "depth": 1, "mixer": "lstm", "position": "none"}
    return FrameClassifier(**defaults | fields)


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 8, 4)).astype(np.uint8)


@pytest.fixture(scope="module")
def variables(clips):
    return unbox(jax.jit(make().init)(jax.random.key(0), clips))


@pytest.mark.conformance
def test_probabilities_are_averaged_over_frames(clips, variables):
    y = make().apply(variables, clips)
    steps = jax.nn.softmax(make().apply(variables, clips, method="steps"), axis=-1)
    np.testing.assert_allclose(np.exp(y), jnp.mean(steps, axis=1), rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(jnp.exp(y), axis=-1), 1, rtol=1e-5)


def test_a_frame_sees_earlier_ones_alone(clips, variables):
    run = jax.jit(lambda clips: make().apply(variables, clips, method="steps"))
    other = clips.copy()
    other[..., 2] = 255 - other[..., 2]
    change = np.abs(run(clips) - run(other))
    assert np.max(change[:, :2]) == 0 and np.all(np.max(change[:, 2:], axis=-1) > 0)


def test_one_frame_is_the_first_step_of_several(clips, variables):
    one = make(frames=1).apply(variables, clips[..., :1])
    steps = jax.nn.log_softmax(make().apply(variables, clips, method="steps"), axis=-1)
    np.testing.assert_allclose(one, steps[:, 0], atol=1e-5)


@pytest.mark.conformance
def test_every_parameter_has_a_gradient(clips, variables):
    def loss(params):
        return jnp.sum(jnp.sin(3 * make().apply({"params": params}, clips)))

    slopes = named_leaves(jax.grad(loss)(variables["params"]))
    (first,) = make().first_grams(jnp.asarray(clips)).values()
    inputs = slopes["convolutions_0/kernel"].shape[:3]
    assert first.shape == (np.prod(inputs), np.prod(inputs))
    for name, leaf in slopes.items():
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), name


def test_clips_move_by_one_place_a_frame():
    pytest.importorskip("sklearn")
    found = load_images("moving_digits(frames=3)")
    assert found.classes == 4
    assert found.train.images.shape == (1437, 16, 16, 3)
    moves = [(-1, 0), (0, 1), (1, 0), (0, -1)]
    for index in range(8):
        one = found.test[index]
        clip, move = one["images"], moves[one["labels"]]
        for t in range(2):
            moved = np.roll(clip[..., t], move, axis=(0, 1))
            np.testing.assert_array_equal(clip[..., t + 1], moved)
    again = load_images("moving_digits(frames=3)")
    assert again.sha256 == found.sha256
