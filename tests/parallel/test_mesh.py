import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.types import LOGICAL_AXES
from reslab.parallel.aot.topology import topology
from reslab.parallel.mesh import (
    RULES,
    batch_parts,
    batch_sharding,
    make_mesh,
    rules,
    use_mesh,
)


def test_every_logical_axis_has_a_rule():
    assert set(RULES) == set(LOGICAL_AXES)


@pytest.mark.parametrize(
    "shape, expected",
    [
        ({"data": -1, "fsdp": 1, "tensor": 1}, (8, 1, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": 8, "tensor": 1}, (1, 8, 1)),
        ({"data": -1}, (8, 1, 1)),
        ({"fsdp": 2, "sequence": -1, "tensor": 2}, (1, 2, 2, 2)),
        ({"data": 8, "sequence": 1}, (8, 1, 1)),
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
        {"data": 4, "sequence": 4},
        {"data": 8, "sequence": 0},
    ],
)
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ReslabError, match="multiply to the 8 devices"):
        make_mesh(shape)


def test_tokens_of_a_row_are_divided_where_the_mesh_says_so():
    assert dict(rules(make_mesh({"data": 8})))["length"] is None
    mesh = make_mesh({"data": 2, "sequence": 4})
    assert mesh.axis_names == ("data", "fsdp", "sequence", "tensor")
    assert dict(rules(mesh))["length"] == "sequence"
    assert batch_parts(mesh) == 2
    # Ids of tokens are few bytes, and each row stays whole.
    assert batch_sharding(mesh).shard_shape((8, 16)) == (4, 16)


class Chip:
    """What a mesh asks of a device."""

    platform = "test"

    def __init__(self, index, at):
        self.id, self.slice_index = index, at


def test_slices_of_a_pod():
    devices = [Chip(index, index // 4) for index in range(8)]
    with pytest.raises(ReslabError, match=r"mesh.dcn_data: expected the 2 slices.*1$"):
        make_mesh({"data": 8}, devices)
    with pytest.raises(ReslabError, match=r"mesh.data: expected a multiple .*=2; .*1$"):
        make_mesh({"fsdp": 8, "dcn_data": 2}, devices)
    with pytest.raises(ReslabError, match=r"mesh.dcn_data: expected the 1 slices.*2$"):
        make_mesh({"data": 8, "dcn_data": 2})
    mesh = make_mesh({"data": 2, "fsdp": 4, "dcn_data": 2}, devices)
    # A replica lies in a slice; what passes between slices are replicas' gradients.
    for replica, row in enumerate(mesh.devices):
        assert {device.slice_index for device in row.flat} == {replica}


@pytest.mark.parametrize(
    ("name", "shape"),
    [("v6e:4x4", {"data": 2, "fsdp": 8}), ("v5p:4x4x4", {"data": 2, "fsdp": 32})],
)
def test_axes_may_divide_the_links_of_one_direction(name, shape):
    pytest.importorskip("libtpu")
    mesh = make_mesh(shape, topology(name).devices)
    assert {axis: mesh.shape[axis] for axis in shape} == shape
    assert len(set(mesh.devices.flat)) == mesh.devices.size


def test_collectives_of_eight_fake_devices_do_not_deadlock():
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(jnp.arange(8.0), sharding)
    with use_mesh(mesh):
        add = jax.jit(lambda x: x / jnp.maximum(jnp.sum(x), 1.0) * 28)
        for _ in range(300):
            x = add(x)
    np.testing.assert_allclose(np.sum(x), 28, rtol=1e-4)
