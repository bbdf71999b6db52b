"""TPU slices that this machine need not have."""

import dataclasses
import importlib.util
import math
import os
import re
import types
from collections.abc import Mapping

import jax
from jax.experimental import topologies

from reslab.core.errors import ReslabError, missing_extra, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of TPU, as one JAX device: a chip, or one of its cores.

    Attributes:
      hbm_bytes: Memory that the compiler may use, bytes.
      hbm_bandwidth: Bytes per second between memory and chip.
      clock: Cycles of the tensor core per second.
      rank: Axes of a slice.
      link: Bytes per second to a neighbour in a slice, each way.
      ring: An axis of a multiple of this size is closed to a ring.
      network: Bytes per second of a chip to other slices, each way.
      layout: How libtpu divides the chip into devices.
      devices: Devices of a chip.
    """

    hbm_bytes: int
    hbm_bandwidth: float
    clock: float
    rank: int
    link: float
    ring: int
    network: float
    layout: str = "default"
    devices: int = 1


def _gibibytes(count: float) -> int:
    return int(count * 2**30)


# Memory: the limit that libtpu 0.0.51 reports when a program exceeds it; the chip holds
# up to 2% more. Bandwidth: the "system architecture" pages of Cloud TPU. Clock: the
# peak bfloat16 FLOP/s of those pages over the FLOPs in a cycle of the matrix units (128
# x 128, two FLOPs each, four units a core; v6e: 256 x 256). Links: the interconnect of
# a chip on those pages over its links, two an axis; the pages also name the axes that
# are rings. Network: a pod's on those pages over its chips; v4, which they omit, has
# v5p's.
CHIPS: Mapping[str, Chip] = types.MappingProxyType(
    {
        # Without "megacore" each of its two cores is a device of its own.
        "v4": Chip(
            _gibibytes(30.75), 1228e9, 1.05e9, 3, 50e9, 4, 6.25e9, layout="megacore"
        ),
        "v5e": Chip(_gibibytes(15.75), 819e9, 1.5e9, 2, 50e9, 16, 3.125e9),
        "v5p": Chip(_gibibytes(95.73), 2765e9, 1.75e9, 3, 100e9, 4, 6.25e9),
        "v6e": Chip(_gibibytes(31.24), 1640e9, 1.75e9, 2, 100e9, 16, 12.5e9),
        # Half of a chip each: two devices share its links. Matrix units as on v6e.
        "tpu7x": Chip(_gibibytes(94.74), 3690e9, 2.2e9, 3, 50e9, 4, 6.25e9, devices=2),
    }
)

# Generation by the first part of an accelerator type, and what its number counts for
# each chip: cores before v5e, and on v5p.
_TYPES = types.MappingProxyType(
    {
        "v4": ("v4", 2),
        "v5e": ("v5e", 1),
        "v5litepod": ("v5e", 1),
        "v5p": ("v5p", 2),
        "v6e": ("v6e", 1),
    }
)

# Without an attached TPU, libtpu must neither search for one nor lock the device.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Otherwise a second process aborts.
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def prepare() -> None:
    """Sets what libtpu reads when it wakes up; what is set already stays.

    Raises:
      ReslabError: If libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise missing_extra("libtpu", "tpu")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPU chips to compile for, or several alike.

    Attributes:
      name: Such as `v5e:2x4`.
      generation: Of its chips: `v5e`.
      chip: What each of its chips is.
      devices: Its devices, which can be compiled for but not run on.
    """

    name: str
    generation: str
    chip: Chip
    devices: tuple[jax.Device, ...]


def shape_of(name: str) -> str:
    """Returns the slice of an accelerator type; any other name as it is.

    >>> shape_of("v5litepod-16"), shape_of("v6e-8"), shape_of("v5p-8")
    ('v5e:4x4', 'v6e:2x4', 'v5p:2x2x1')

    Raises:
      ReslabError: If no slice has that many chips.
    """
    kind, dash, number = name.partition("-")
    if not dash or kind not in _TYPES or not number.isdecimal():
        return name
    generation, cores = _TYPES[kind]
    chips, rest = divmod(int(number), cores)
    power = chips.bit_length() - 1
    if rest or chips != 1 << max(power, 0):
        raise ReslabError(
            f"topology {name!r}",
            expected="a power of two, "
            + ("of two cores a chip" if cores > 1 else "in chips"),
            hint=f"{generation} and a shape in chips, such as {_form(generation)}",
        )
    rank = CHIPS[generation].rank
    # As even as can be, the longest side last; but a host is 2 x 2 x 1.
    sides = sorted(1 << (power + axis) // rank for axis in range(rank))
    sides = sides if power > 2 or rank == 2 else sides[::-1]
    return f"{generation}:{'x'.join(map(str, sides))}"


def _form(generation: str) -> str:
    return f"{generation}:{'x'.join('2' * CHIPS[generation].rank)}"


def topology(name: str) -> Topology:
    """Describes a slice; no TPU is needed, libtpu is.

    Args:
      name: Generation and shape in chips: `v5e:2x4`, `v5p:2x2x1`; or an accelerator
        type, `v5litepod-8`; `2xv5e:2x4` is two slices that a network connects.

    Returns:
      The slice, or slices.

    Raises:
      ReslabError: If there is no such slice, or libtpu is not installed.
    """
    several = re.match(r"([1-9]\d?)x(?=[a-z])", name)
    slices = int(several[1]) if several else 1
    one = shape_of(name[several.end() :] if several else name)
    generation, _, layout = one.partition(":")
    chip = CHIPS.get(generation)
    if chip is None:
        raise ReslabError(
            f"topology {name!r}",
            expected="a slice, such as v5e:2x4, or an accelerator type, v5litepod-8",
            hint=nearest(generation, CHIPS),
        )
    form = _form(generation)
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{chip.rank - 1}}}", layout):
        raise ReslabError(
            f"topology {name!r}", expected=f"a form such as {form}", got=repr(layout)
        )
    prepare()
    sizes = [int(size) for size in layout.split("x")]
    # A host has 2 x 2 chips at most; a slice of one chip is a host of one.
    hosts = [min(2, size) for size in sizes[:2]] + [1]
    try:
        described = topologies.get_topology_desc(
            one,
            "tpu",
            chips_per_host_bounds=tuple(hosts),
            chip_config_name=chip.layout,
            num_slices=slices,
        )
        devices = tuple(described.devices)
    except jax.errors.JaxRuntimeError as error:
        message = str(error).splitlines()[0]
        raise ReslabError(
            f"topology {name!r}", got=message, hint=f"even sizes, such as {form}"
        ) from None
    count = slices * math.prod(sizes) * chip.devices
    if len(devices) != count:
        raise ReslabError(
            f"topology {name!r}",
            expected=f"{count} devices",
            got=str(len(devices)),
        )
    return Topology(name, generation, chip, devices)
