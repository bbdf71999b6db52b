"""What Normalize-and-Project does with the gains and biases of norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.layout import Layout
from reslab.optim.normalize_and_project import build

DEPTH, WIDTH = 3, 4
STACKED = Layout("vector", (0,))
LAYOUTS = {
    "body": {
        "norm": {"gain": STACKED, "bias": STACKED},
        "query": {"kernel": Layout("matrix", (0,), (1,), (2,)), "bias": STACKED},
    },
    "final_norm": {"gain": Layout()},
}
SHAPES = {
    "body": {
        "norm": {"gain": (DEPTH, WIDTH), "bias": (DEPTH, WIDTH)},
        "query": {"kernel": (DEPTH, WIDTH, 2), "bias": (DEPTH, 2)},
    },
    "final_norm": {"gain": (WIDTH,)},
}


def draw(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def steps(count, offset=1.0, **options):
    """Parameters before and after steps of SGD with a gradient of their own each."""
    made = build(0.1, 0.0, LAYOUTS, "sgd(momentum=0.0)", gain_offset=offset, **options)
    params = start = draw(0)
    state = made.init(params)
    update = jax.jit(made.update)
    for step in range(count):
        updates, state = update(draw(1 + step), state, params)
        params = optax.apply_updates(params, updates)
    return start, params


def joint(params, offset):
    """The joint norm of gain and bias, layer by layer, and that of the last norm."""
    norm = params["body"]["norm"]
    squares = np.sum((norm["gain"] + offset) ** 2 + norm["bias"] ** 2, axis=1)
    return np.sqrt([*squares, np.sum((params["final_norm"]["gain"] + offset) ** 2)])


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_projected_gains_and_biases_keep_their_joint_norm(offset):
    start, end = steps(2, offset, gains="projected")
    np.testing.assert_allclose(joint(end, offset), joint(start, offset), rtol=1e-5)
    # One step by hand: both are multiplied by one number.
    start, end = steps(1, offset, gains="projected")
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, start, draw(1))
    factor = joint(start, offset) / joint(moved, offset)
    for name, given in (("gain", offset), ("bias", 0.0)):
        wanted = (moved["body"]["norm"][name] + given) * factor[:DEPTH, None] - given
        found = end["body"]["norm"][name]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    query = moved["body"]["query"]["bias"]
    np.testing.assert_allclose(end["body"]["query"]["bias"], query, rtol=1e-6)


def test_frozen_gains_rest_and_free_ones_move():
    start, end = steps(2, gains="frozen")
    for path in (("body", "norm"), ("final_norm",)):
        before, after = start, end
        for key in path:
            before, after = before[key], after[key]
        jax.tree.map(np.testing.assert_array_equal, after, before)
    assert np.all(end["body"]["query"]["bias"] != start["body"]["query"]["bias"])
    sizes = [
        np.linalg.norm(p["body"]["query"]["kernel"], axis=(1, 2)) for p in (start, end)
    ]
    np.testing.assert_allclose(*sizes, rtol=1e-5)
    _, free = steps(1)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, start, draw(1))
    norm = moved["body"]["norm"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        free["body"]["norm"],
        norm,
    )


def test_an_unknown_way_is_refused():
    with pytest.raises(ReslabError, match="gains: expected 'free', 'projected' or"):
        registry.make(
            "optimizers", "normalize_and_project(gains='tied')", learning_rate=1
        )
