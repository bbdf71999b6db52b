"""The device mesh, and the rules that map logical axes to its axes."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, unbox
from reslab.core.types import (
    BATCH_AXES,
    EXPERT_AXIS,
    HEAD_AXES,
    LOGICAL_AXES,
    MESH_AXES,
    SEQUENCE_AXIS,
)
from reslab.parallel.hosts import check_joined

# The batch is spread over data, fsdp and expert; fsdp and expert also spread parameters
# over their embed axis, tensor over the axis inside each sublayer (Megatron's split).
# Matrices of experts lie with their experts. Tokens of a row are spread over sequence.
# Of several rules for a name the first holds whose mesh axes are still free.
# Inner inputs, a latent vector or the block of a head, are divided like embed where
# their number allows it.
RULES: Sequence[tuple[str, tuple[str, ...]]] = (
    ("batch", BATCH_AXES),
    ("length", (SEQUENCE_AXIS,)),
    ("experts", (EXPERT_AXIS,)),
    ("embed", ("fsdp", EXPERT_AXIS)),
    ("embed", ("fsdp",)),
    ("mlp", ("tensor",)),
    ("heads", HEAD_AXES),
    ("head_dim", ()),
    ("inner", ("fsdp", EXPERT_AXIS)),
    ("inner", ("fsdp",)),
    ("vocab", ("tensor",)),
    ("layers", ()),
    ("streams", ()),
    ("window_rows", ()),
    ("window_columns", ()),
    ("channels", ()),
)
assert {name for name, _ in RULES} == set(LOGICAL_AXES)


def make_mesh(
    shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arranges devices in a mesh with the axes `data`, `fsdp` and `tensor`.

    With `expert` or `sequence` above 1 it has that axis too, between `fsdp` and
    `tensor`: what is exchanged most lies closest together. With `dcn_data` above 1 the
    devices are those of `dcn_data` TPU slices; the replicas of `data` are divided among
    them, so that the other axes stay inside a slice and gradients alone pass between
    them.

    Args:
      shape: Size of each axis, 1 if not given; at most one may be -1, which
        takes the remaining devices.
      devices: The devices; all of them if None.

    Returns:
      The mesh.

    Raises:
      ReslabError: If the sizes do not multiply to the number of devices, the number
        of slices is not `dcn_data`, or this host has not joined the others.
    """
    if devices is None:
        check_joined()
        devices = jax.devices()
    devices = list(devices)
    more = [axis for axis in (EXPERT_AXIS, SEQUENCE_AXIS) if shape.get(axis, 1) != 1]
    axes = (*MESH_AXES[:-1], *more, MESH_AXES[-1])
    sizes = [int(shape.get(axis, 1)) for axis in axes]
    free = [i for i, size in enumerate(sizes) if size == -1]
    known = math.prod(size for size in sizes if size != -1)
    if len(free) == 1 and known > 0 and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    if len(free) > 1 or math.prod(sizes) != len(devices) or min(sizes) < 1:
        raise ReslabError(
            "mesh",
            expected=f"axes that multiply to the {len(devices)} devices",
            got=" x ".join(f"{a}={s}" for a, s in zip(axes, sizes, strict=True)),
            hint="set one axis to -1 to take the remaining devices",
        )
    slices = _slices(devices, int(shape.get("dcn_data", 1)), sizes[0])
    kinds = (AxisType.Auto,) * len(axes)
    if devices[0].platform != "tpu":
        ordered = np.asarray([device for one in slices for device in one])
        return Mesh(ordered.reshape(sizes), axes, axis_types=kinds)
    inside = (sizes[0] // len(slices), *sizes[1:])
    # Orders each slice by its wiring, then the slices one after another.
    grids = [_wired(dict(zip(axes, inside, strict=True)), one) for one in slices]
    return Mesh(np.concatenate(grids), axes, axis_types=kinds)


def _wired(shape: Mapping[str, int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices of a slice, each axis along links of their own.

    Where the sizes are not those of the wiring, links of one direction are divided
    among axes.
    """
    sizes = tuple(shape.values())
    kinds = (AxisType.Auto,) * len(sizes)
    try:
        return jax.make_mesh(
            sizes, tuple(shape), axis_types=kinds, devices=devices
        ).devices
    except NotImplementedError:
        pass
    try:
        return mesh_utils.create_device_mesh(
            sizes, devices, allow_split_physical_axes=True
        )
    except NotImplementedError:
        raise ReslabError(
            "mesh",
            expected="axes along which the chips of the slice are wired",
            got=" x ".join(f"{axis}={size}" for axis, size in shape.items()),
            hint="sizes that multiply to the sides of the slice",
        ) from None


def _slices(
    devices: Sequence[jax.Device], wanted: int, replicas: int
) -> list[list[jax.Device]]:
    """Returns the devices of each slice; checks the number of slices."""
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    if len(slices) != wanted:
        raise ReslabError(
            "mesh.dcn_data",
            expected=f"the {len(slices)} slices that the devices are in",
            got=str(wanted),
        )
    if replicas % wanted:
        raise ReslabError(
            "mesh.data",
            expected=f"a multiple of mesh.dcn_data={wanted}",
            got=str(replicas),
        )
    return [slices[index] for index in sorted(slices)]


def rules(mesh: Mesh) -> tuple[tuple[str, Any], ...]:
    """The rules that hold in a mesh: axes that it has not divide nothing."""
    found = []
    for name, wanted in RULES:
        axes = tuple(axis for axis in wanted if axis in mesh.shape)
        found.append((name, axes if len(axes) > 1 else axes[0] if axes else None))
    return tuple(found)


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are divided."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[Mesh]:
    """Makes the mesh and the logical-axis rules current for traced code."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules(mesh)):
        yield mesh


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of the global batch over `data`, `fsdp` and `expert`, each row whole.

    Token ids are few bytes; where a mesh divides rows too, the model does it.
    """
    return NamedSharding(mesh, PartitionSpec(dict(rules(mesh))["batch"]))


def place_on(
    mesh: Mesh,
) -> Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]:
    """A function that puts this process's rows of a batch on the mesh."""
    sharding = batch_sharding(mesh)

    def place(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return {
            key: jax.make_array_from_process_local_data(sharding, rows)
            for key, rows in batch.items()
        }

    return place


def device_bytes(tree: Any) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def tree_sharding(boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of shapes boxed with logical axis names.

    Args:
      boxed: Abstract tree whose parameters carry logical axis names.
      mesh: The mesh.

    Returns:
      A `NamedSharding` for every leaf of the unboxed tree.

    Raises:
      ReslabError: If an axis of a parameter is not divided by its mesh axis.
    """
    specs = nn.get_partition_spec(boxed)
    shardings, tree = jax.tree.flatten(
        nn.logical_to_mesh_sharding(specs, mesh, rules(mesh))
    )
    names = jax.tree.leaves(specs, is_leaf=lambda one: isinstance(one, PartitionSpec))
    found = [
        _divided(name, leaf.shape, given, sharding)
        for (name, leaf), given, sharding in zip(
            named_leaves(unbox(boxed)).items(), names, shardings, strict=True
        )
    ]
    return jax.tree.unflatten(tree, found)


def _divided(
    name: str, shape: Sequence[int], given: Sequence[Any], sharding: NamedSharding
) -> NamedSharding:
    """A parameter's sharding; inner inputs take only mesh axes that divide them."""
    mesh, spec = sharding.mesh, list(sharding.spec)
    for place, (size, axis) in enumerate(zip(shape, spec, strict=False)):
        axes = axis if isinstance(axis, tuple) else (axis,) if axis else ()
        while size % (parts := math.prod(mesh.shape[a] for a in axes)):
            if given[place] != "inner":
                raise ReslabError(
                    f"parameter {name} of shape {shape}",
                    expected=f"an axis of {size} that mesh axis {axis}={parts} divides",
                    hint="change the mesh, or the size (model.vocabulary_multiple "
                    "pads the vocabulary)",
                )
            spec[place] = axes = axes[:-1]
    return NamedSharding(mesh, PartitionSpec(*spec))
