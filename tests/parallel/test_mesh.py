import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.parameters import logical_axes
from reslab.core.trees import named_leaves, unbox
from reslab.core.types import LOGICAL_AXES
from reslab.nn.ffns.experts import Experts
from reslab.parallel.aot.topology import topology
from reslab.parallel.mesh import (
    RULES,
    batch_parts,
    batch_sharding,
    make_mesh,
    rules,
    tree_sharding,
    use_mesh,
)


def test_every_logical_axis_has_a_rule():
    assert {name for name, _ in RULES} == set(LOGICAL_AXES)


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


def test_experts_have_an_axis_where_the_mesh_says_so():
    assert dict(rules(make_mesh({"data": 8})))["experts"] is None
    mesh = make_mesh({"data": 2, "expert": 2, "sequence": 2})
    assert mesh.axis_names == ("data", "fsdp", "expert", "sequence", "tensor")
    assert batch_parts(mesh) == 4
    assert batch_sharding(mesh).shard_shape((8, 16)) == (2, 16)
    known = rules(mesh)
    axes = nn.logical_to_mesh_axes
    # A matrix of experts lies with them; others are divided along their features.
    assert axes(("experts", "embed", "mlp"), known) == P("expert", "fsdp", "tensor")
    assert axes(("embed", "mlp"), known) == P(("fsdp", "expert"), "tensor")


def test_the_axis_divides_the_experts():
    mesh = make_mesh({"data": 1, "expert": 8})
    with logical_axes():
        boxed = jax.eval_shape(
            lambda: Experts(experts=6).init(jax.random.key(0), jnp.ones((8, 2, 8)))
        )
    with pytest.raises(ReslabError, match="an axis of 6 that mesh axis expert=8 div"):
        tree_sharding(boxed["params"], mesh)


@pytest.mark.parametrize(
    ("mixer", "kernels"),
    [
        (
            "latent_attention(heads=4,rank=16,query_rank=40)",
            {"query/kernel", "key_up_kernel", "value_up_kernel"},
        ),
        ("kda(heads=4,head_dim=8)", {"decay/kernel", "gate/kernel"}),
        ("rg_lru(heads=4)", {"recurrent_gate_kernel", "input_gate_kernel"}),
    ],
)
def test_inner_inputs_are_divided_where_their_number_allows_it(mixer, kernels):
    """Everything with at least two axes is in one place; gains and taps are small."""
    with logical_axes():
        boxed = jax.eval_shape(
            lambda: registry.make("mixers", mixer).init(
                jax.random.key(0), jnp.ones((1, 2, 32)), positions=jnp.ones((1, 2), int)
            )
        )["params"]
    names = named_leaves(unbox(boxed))
    for shape, parts in (({"fsdp": 4, "tensor": 2}, 8), ({"fsdp": 2, "expert": 4}, 8)):
        found = named_leaves(tree_sharding(boxed, make_mesh({"data": 1, **shape})))
        for name in kernels:
            held = math.prod(found[name].shard_shape(names[name].shape))
            assert held * parts == names[name].size, name
    # 3 divides none of them: the inner axis stays whole.
    mesh = make_mesh({"data": 1, "fsdp": 3}, jax.devices()[:3])
    boxes = flatten_dict(boxed, sep="/")
    inner = {name: boxes[name] for name in kernels}
    for name, sharding in named_leaves(tree_sharding(inner, mesh)).items():
        assert sharding.shard_shape(names[name].shape) == names[name].shape, name


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
