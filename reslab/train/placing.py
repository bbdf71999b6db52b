"""Tensors of a checkpoint as parameters on a mesh, one after the other."""

import concurrent.futures
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from reslab.core.depth import block_layers
from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, nested_leaves
from reslab.interop.base.family import Family
from reslab.interop.base.files import Source, Stored
from reslab.interop.base.tensors import Index, Tensor, tensors, uncovered
from reslab.train.state import Setup, named_variables

HEAD = "lm_head.weight"
# One tensor is read while another is transposed.
_THREADS = 2


def expected_tensors(source: Source, family: Family, setup: Setup) -> list[Tensor]:
    """The tensors that a checkpoint must hold, checked against those it has.

    Args:
      source: The checkpoint.
      family: Its family.
      setup: The model that its config describes.

    Raises:
      ReslabError: If one is missing, too many, or of another shape.
    """
    shapes, blocks = layout(setup)
    stored = source.tensors
    has_prefix = any(name.startswith(family.prefix) for name in stored)
    prefix = family.prefix if has_prefix else ""
    tables = [tensors(rows, shapes, blocks, prefix) for rows in family.tables]
    wanted = next((one for one in tables if _fits(one, stored)), tables[0])
    assert not uncovered(wanted, shapes), uncovered(wanted, shapes)
    names = {one.name for one in wanted}
    where, kind = source.directory, family.model_type
    if missing := [one.name for one in wanted if one.name not in stored]:
        tied = "untied heads, and " if missing == [HEAD] else ""
        raise ReslabError(
            f"{where} lacks {_listed(missing)}",
            expected=f"{tied}every tensor of {kind} with its config.json",
        )
    extra = [
        name
        for name in stored
        if name not in names and not re.search(family.buffers, name)
    ]
    if extra == [HEAD]:
        _check_tied(source, prefix, wanted)
        extra = []
    if extra:
        raise ReslabError(
            f"{where} holds {_listed(extra)}",
            expected=f"the tensors of {kind} with its config.json",
        )
    for one in wanted:
        if stored[one.name].shape != one.shape:
            turned = stored[one.name].shape == one.shape[::-1]
            raise ReslabError(
                f"{where}: shape of {one.name}",
                expected=f"{one.shape}, by config.json",
                got=f"{stored[one.name].shape}" + ", transposed" * turned,
            )
    return wanted


def _fits(wanted: list[Tensor], stored: Mapping[str, Stored]) -> bool:
    return all(
        one.name in stored and stored[one.name].shape == one.shape for one in wanted
    )


def _check_tied(source: Source, prefix: str, wanted: list[Tensor]) -> None:
    """Checks that a head beside tied embeddings is the embedding."""
    (embedding,) = (t.name for t in wanted if t.places[0].path == "embedding")
    if not np.array_equal(source.read(HEAD), source.read(embedding)):
        raise ReslabError(
            f"{source.directory}: {HEAD} differs from {embedding}",
            expected="the same, by tie_word_embeddings of config.json",
            hint='"tie_word_embeddings": false',
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" * (len(names) > 3)
    return f"{', '.join(names[:3])}{more}"


def layout(setup: Setup) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """Shape of each leaf of the model, and the layers in each block of each scan.

    Rows that pad the vocabulary are left out: a checkpoint has none.
    """
    leaves = named_variables(setup.shapes.variables)
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    size = setup.model.vocabulary_size
    shapes["embedding"] = (size, *shapes["embedding"][1:])
    if "head" in shapes:
        shapes["head"] = (*shapes["head"][:-1], size)
    return shapes, block_layers(setup.shapes.params)


def placed(source: Source, wanted: list[Tensor], setup: Setup) -> dict[str, Any]:
    """Reads tensors one by one and puts each where it belongs.

    The host holds two tensors at a time beside the parameters; with an accelerator, two
    tensors and the leaf of all layers that they are part of.

    Args:
      source: The checkpoint.
      wanted: Its tensors, row by row.
      setup: The model, whose shardings are taken.

    Returns:
      The variables of the model, by collection.
    """
    variables = setup.shapes.variables
    leaves = named_variables(variables)
    found: dict[str, jax.Array] = {}
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        # Rows of parts of one array follow each other.
        for _, group in itertools.groupby(wanted, lambda one: one.row.ours):
            row = list(group)
            paths = {place.path for one in row for place in one.places}
            assert not paths & found.keys()
            shards = {path: _Shards(leaves[path]) for path in paths}
            # Waits for all, and raises what one of them has raised.
            list(pool.map(lambda one, to=shards: _read(source, one, to), row))
            found |= {path: shards[path].array() for path in paths}
    return {
        name: nested_leaves({path: found[path] for path in named_leaves(tree)})
        for name, tree in variables.items()
    }


def _read(source: Source, one: Tensor, shards: "dict[str, _Shards]") -> None:
    """Reads a tensor and writes its parts to where they belong."""
    tensor = source.read(one.name)
    parts = one.form.read(tensor, [place.shape for place in one.places])
    for part, place in zip(parts, one.places, strict=True):
        shards[place.path].write(part, place.index)


class _Shards:
    """The parts of an array that this process holds, filled on the host."""

    def __init__(self, leaf: jax.ShapeDtypeStruct):
        self._leaf = leaf
        devices = leaf.sharding.addressable_devices_indices_map(leaf.shape)
        self._spans = {
            device: tuple(
                range(*span.indices(size))
                for span, size in zip(spans or (), leaf.shape, strict=True)
            )
            for device, spans in devices.items()
        }
        # Devices with copies of the same part share it.
        self._buffers = {
            spans: _aligned(tuple(map(len, spans)), leaf.dtype)
            for spans in set(self._spans.values())
        }

    def write(self, part: np.ndarray, index: Index) -> None:
        """Writes a slice of the array; rows that pad a vocabulary stay zero."""
        for spans, buffer in self._buffers.items():
            if found := _shared(spans, index, part.shape):
                at, of_part = found
                _copy(part[of_part], buffer[at])

    def array(self) -> jax.Array:
        """Puts the parts on their devices."""
        arrays = [
            jax.device_put(self._buffers[spans], device)
            for device, spans in self._spans.items()
        ]
        return jax.make_array_from_single_device_arrays(
            self._leaf.shape, self._leaf.sharding, arrays
        )


def _shared(
    spans: tuple[range, ...], index: Index, shape: tuple[int, ...]
) -> tuple[Index, Index] | None:
    """Slices of a shard and of a part of the array that are the same, if any.

    Args:
      spans: What the shard holds of each axis.
      index: Where the part is.
      shape: Its shape.
    """
    at, of_part, sizes = [], [], iter(shape)
    for axis, span in enumerate(spans):
        one = index[axis] if axis < len(index) else slice(None)
        if isinstance(one, int):
            if one not in span:
                return None
            at.append(one - span.start)
            continue
        first = one.start or 0
        low, high = max(first, span.start), min(first + next(sizes), span.stop)
        if low >= high:
            return None
        at.append(slice(low - span.start, high - span.start))
        of_part.append(slice(low - first, high - first))
    return tuple(at), tuple(of_part)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory that a CPU's JAX takes as it is, without a copy."""
    dtype, line = np.dtype(dtype), 64
    size = math.prod(shape) * dtype.itemsize
    raw = np.zeros(size + line, np.uint8)
    begin = -raw.ctypes.data % line
    return raw[begin : begin + size].view(dtype).reshape(shape)


# Rows of a transposed matrix that are copied at once, so that they stay in the cache.
_BLOCK = 32


def _copy(part: np.ndarray, out: np.ndarray) -> None:
    """Copies an array that may be transposed, in blocks."""
    if part.dtype == out.dtype:
        # NumPy moves integers faster than bfloat16.
        plain = np.dtype(f"u{part.dtype.itemsize}")
        part, out = part.view(plain), out.view(plain)
    if part.ndim < 2 or part.flags.c_contiguous:
        out[...] = part
        return
    # All axes but the one that is contiguous in memory; blocks are of the last.
    slow = sorted(range(part.ndim), key=lambda axis: part.strides[axis])[1:]
    *outer, last = sorted(slow)
    for place in np.ndindex(*(part.shape[axis] for axis in outer)):
        at: list[Any] = [slice(None)] * part.ndim
        for axis, number in zip(outer, place, strict=True):
            at[axis] = number
        for begin in range(0, part.shape[last], _BLOCK):
            at[last] = slice(begin, begin + _BLOCK)
            out[tuple(at)] = part[tuple(at)]
