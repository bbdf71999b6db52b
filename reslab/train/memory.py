"""Memory that a run needs at least, before anything is allocated."""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.types import SEQUENCE_AXIS
from reslab.models.cost import generation_bytes
from reslab.parallel.mesh import batch_parts, device_bytes
from reslab.train.state import Setup

# Memory limit of a container, under either version of control groups.
_LIMITS = (
    pathlib.Path("/sys/fs/cgroup/memory.max"),
    pathlib.Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def host_bytes() -> int | None:
    """Memory of this machine, or what its container may use; None if unknown."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError, AttributeError):
        return None
    for path in _LIMITS:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return min(found)


def available_bytes(device: jax.Device) -> int | None:
    """Returns the memory of a device (of the machine for a CPU), or None if unknown.

    The CPU devices of a process share its machine.
    """
    if device.platform == "cpu":
        total = host_bytes()
        return None if total is None else total // max(1, len(jax.local_devices()))
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return None  # For example a device that is compiled for and absent.


def least_bytes(setup: Setup, *, is_training: bool = True) -> dict[str, int]:
    """A lower bound of what one device must hold at once, part by part.

    The residual stream stands for all activations: one copy of it in evaluation,
    and while training one for every layer, whose input the backward pass reads.

    Args:
      setup: The run.
      is_training: Whether it is trained, or only evaluated.
    """
    config, shapes, mesh = setup.config, setup.shapes, setup.mesh
    found = {"parameters": device_bytes(shapes.params)}
    if running := device_bytes(shapes.model_state):
        found["running values"] = running
    rows = math.ceil(config.eval.batch / batch_parts(mesh))
    copies = 1
    if is_training:
        found["optimizer state"] = device_bytes(shapes.opt_state)
        parts = batch_parts(mesh) * config.train.accumulate
        trained = math.ceil(config.data.batch / parts)
        layers = config.model.depth if _keeps_every_layer(setup) else 1
        probed = config.probes.batch if config.probes.every else 0
        probed = math.ceil(probed / batch_parts(mesh))
        at_once = (rows, 1), (trained, layers), (probed, 1)
        rows, copies = max(at_once, key=math.prod)
    if setup.task.unit == "tokens":
        tokens = rows * math.ceil(config.data.length / mesh.shape.get(SEQUENCE_AXIS, 1))
        width = config.model.features * jnp.dtype(setup.model.dtype).itemsize
        found["activations"] = copies * tokens * width
    return found


def _keeps_every_layer(setup: Setup) -> bool:
    """Returns whether the backward pass surely reads the input of every layer."""
    config = setup.config
    parts = f"{config.model.block} {config.model.residual} {config.model.stack}"
    # Frozen parameters need no gradient, hence no activations.
    return "reversible" not in parts and "freeze" not in str(config.optim.groups)


def check_memory(setup: Setup, *, is_training: bool = True, runs: int = 1) -> None:
    """Checks that a run can fit the devices that are to run it.

    Args:
      setup: The run.
      is_training: Whether it is trained, or only evaluated.
      runs: Number of such runs that are on the devices at once.

    Raises:
      ReslabError: If even the lower bound does not fit.
    """
    found = least_bytes(setup, is_training=is_training)
    parts = {part: runs * size for part, size in found.items()}
    largest = max(parts, key=lambda part: parts[part])
    hint = {
        "activations": "a smaller data.batch, data.length, eval.batch or probes.batch, "
        "or a larger train.accumulate",
        "running values": "a shorter window of the norm",
    }.get(
        largest, "a smaller model.features or model.depth, or mesh.fsdp on more chips"
    )
    _check_fits(setup.mesh.devices.flat[0], parts, hint)


def check_generation(model: Any, samples: int, length: int) -> None:
    """Checks that sequences can fit the first device while they are generated.

    Args:
      model: The model.
      samples: Number of sequences.
      length: Tokens in each, the prompt included.

    Raises:
      ReslabError: If even the caches, recurrent states and logits do not fit.
    """
    kept, _ = generation_bytes(model, length)
    parts = {
        "caches and states": samples * kept,
        "logits": samples * model.vocabulary_size * 4,
    }
    _check_fits(jax.devices()[0], parts, "fewer samples, or a smaller length")


def _check_fits(device: jax.Device, parts: Mapping[str, int], hint: str) -> None:
    limit = available_bytes(device)
    needed = sum(parts.values())
    if limit is None or needed <= limit:
        return
    listed = ", ".join(f"{part} {_gib(size)}" for part, size in parts.items())
    raise ReslabError(
        "not enough memory",
        expected=f"at most {_gib(limit)} for each {device.platform} device",
        got=f"an estimate of at least {_gib(needed)} ({listed})",
        hint=hint,
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size < 2**80 else f"{size:.1e} bytes"
