import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.types import LOGICAL_AXES
from reslab.parallel.mesh import RULES, make_mesh, use_mesh


def test_every_logical_axis_has_a_rule():
    assert set(RULES) == set(LOGICAL_AXES)


@pytest.mark.parametrize(
    "shape, expected",
    [
        ({"data": -1, "fsdp": 1, "tensor": 1}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": 8, "tensor": 1}, (1, 8, 1)),
    ],
)
def test_one_axis_takes_what_is_left(shape, expected):
    assert tuple(make_mesh(shape).shape.values()) == expected


@pytest.mark.parametrize(
    "shape",
    [
        {"data": 3, "fsdp": 1, "tensor": 1},
        {"data": -1, "fsdp": -1, "tensor": 1},
        {"data": -1, "fsdp": 3, "tensor": 1},
        {"data": 0, "fsdp": -1, "tensor": 1},
        {"data": -8, "fsdp": -1, "tensor": 1},
    ],
)
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ReslabError, match="multiply to the 8 devices"):
        make_mesh(shape)


def test_collectives_of_eight_fake_devices_do_not_deadlock():
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(jnp.arange(8.0), sharding)
    with use_mesh(mesh):
        add = jax.jit(lambda x: x / jnp.maximum(jnp.sum(x), 1.0) * 28)
        for _ in range(300):
            x = add(x)
    np.testing.assert_allclose(np.sum(x), 28, rtol=1e-4)
