"""`reslab bench ops`: what kernels cost beside plain XLA, as rows of CSV."""

import csv
import dataclasses
import datetime
import functools
import io
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from reslab.core.errors import ReslabError, nearest
from reslab.observe.environment import environment
from reslab.ops.catalogue import OPERATIONS, Case, Loop, cases
from reslab.parallel.aot import bundles
from reslab.parallel.aot.cost import Machine, program_cost
from reslab.parallel.aot.program import compile_program
from reslab.parallel.aot.topology import CHIPS, topology
from reslab.runtime.python import command

# A single chip cannot be described; its program is compiled for one of a host's.
TARGETS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
# Cores that share a chip's memory, and a kernel's parallel axes.
CORES = {"v5e": 1, "v5p": 2, "v6e": 1}
# Largest difference over the largest number, in float32.
TOLERANCE = 1e-5
# A CPU is not what the large shapes are for: it runs those that move no more than this.
LARGEST_ON_CPU = 2**27


@dataclasses.dataclass
class Row:
    """One measurement; what was not measured is empty.

    Attributes:
      operation: Which one.
      shape: Name of the shape (`reslab/ops/*/shapes.py`).
      dtype: Of its arrays.
      direction: "forward", or "both" with the gradient.
      implementation: "reference" or "pallas".
      device: What it ran on, or the chip that it was compiled for.
      is_compiled: Whether it was compiled and did not run.
      ideal_bytes: The least that must be read and written.
      hbm_bytes: What the compiled program reads and writes.
      bytes_ratio: Of the second to the first.
      estimate_us: The compiler's own estimate, calibrated, of what is no kernel.
      bundles_per_step: Bundles of a step of the grid, of all kernels.
      compute_us: Bundles of all steps over the clock.
      dma_us: Bytes over the bandwidth.
      bound: "memory" or "compute", whichever takes longer.
      measured_us: Median time of a run.
      gigabytes_per_second: Ideal bytes over that.
      copy_fraction: Of the rate of a copy on the device, in the same process.
      speedup: Time of the reference over this one's; of what was compiled the least
        time, which is the reference's bytes over the bandwidth alone.
      commit: Of the source.
      jax: Version.
      libtpu: Version.
      date: Of the run.
    """

    operation: str
    shape: str
    dtype: str
    direction: str
    implementation: str
    device: str
    is_compiled: bool
    ideal_bytes: int
    hbm_bytes: int | None = None
    bytes_ratio: float | None = None
    estimate_us: float | None = None
    bundles_per_step: int | None = None
    compute_us: float | None = None
    dma_us: float | None = None
    bound: str | None = None
    measured_us: float | None = None
    gigabytes_per_second: float | None = None
    copy_fraction: float | None = None
    speedup: float | None = None
    commit: str | None = None
    jax: str = ""
    libtpu: str | None = None
    date: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """Names the columns on which rows must agree to be compared."""
        return self.operation, self.shape, self.dtype, self.direction, self.device

    @property
    def least_us(self) -> float | None:
        """The least time that what was compiled can take."""
        return max(self.dma_us or 0.0, self.compute_us or 0.0) or None


FIELDS = [field.name for field in dataclasses.fields(Row)]


def bench_ops(
    operations: Sequence[str],
    targets: Sequence[str],
    shapes: Sequence[str],
    dtype: str,
    tell: Callable[[str], None],
) -> list[Row]:
    """Measures operations here, or compiles them for TPUs that are not here.

    Args:
      operations: Names; all if empty.
      targets: "v5e", "v5p", "v6e"; this machine's own devices if empty.
      shapes: Names of shapes; all if empty.
      dtype: "bfloat16" or "float32".
      tell: Is given a line as each begins.

    Returns:
      The rows.

    Raises:
      ReslabError: On an unknown name, or if a kernel is not equal to its reference:
        what is wrong has no speed.
    """
    for name in operations:
        if name not in OPERATIONS:
            raise ReslabError(f"bench: {name!r}", hint=nearest(name, OPERATIONS))
    for name in targets:
        if name not in TARGETS:
            raise ReslabError(f"bench: target {name!r}", hint=nearest(name, TARGETS))
    if dtype not in ("bfloat16", "float32"):
        raise ReslabError(
            "bench: dtype", expected="bfloat16 or float32", got=repr(dtype)
        )
    operations = operations or OPERATIONS
    known = {case.shape for name in operations for case in cases(name, dtype)}
    for name in shapes:
        if name not in known:
            raise ReslabError(f"bench: shape {name!r}", hint=nearest(name, known))
    for name in operations:
        tell(f"checking {name} against its reference ...")
        check(name)
    rows: list[Row] = []
    for target in targets:
        tell(f"compiling {', '.join(operations)} for {target} ...")
        rows += compiled(operations, target, shapes, dtype)
    if not targets:
        for name in operations:
            for case in cases(name, dtype):
                if not shapes or case.shape in shapes:
                    tell(f"running {name} on {case.shape} ...")
                    rows += _measured(case)
    found = environment()
    for row in rows:
        row.commit = found["commit"]
        row.jax = jax.__version__
        row.libtpu = found["versions"].get("libtpu")
        row.date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return rows


def check(operation: str) -> None:
    """Compares a kernel, emulated in float32, with its reference on a small shape.

    Raises:
      ReslabError: If results or gradients differ.
    """
    case = next(c for c in cases(operation, "float32") if c.shape == "odd")
    rng = np.random.default_rng(0)

    def numbers(shape):
        return jnp.asarray(rng.normal(size=shape.shape), shape.dtype)

    _, shapes = case.both_ways(case.reference)
    arguments = jax.tree.map(numbers, shapes)
    got, expected = (
        jax.jit(case.both_ways(run)[0])(*arguments)
        for run in (_emulated(case), case.reference)
    )
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    for one, other in leaves:
        difference = jnp.max(jnp.abs(one - other)) / jnp.max(jnp.abs(other))
        if not difference <= TOLERANCE:
            raise ReslabError(
                f"bench: {operation} differs from its reference by {difference:.2g}",
                expected=f"at most {TOLERANCE}",
                hint=f"pytest tests/ops -k {operation}",
            )


def _emulated(case: Case) -> Callable[..., Any]:
    return lambda *arguments: case.kernel(*arguments, interpret=True)


# Compiled for a TPU.


def compiled(
    operations: Sequence[str],
    target: str,
    shapes: Sequence[str],
    dtype: str = "bfloat16",
    implementations: Sequence[str] = ("reference", "pallas"),
    directions: Sequence[str] = ("forward", "both"),
) -> list[Row]:
    """Compiles in a process of its own: libtpu reads what to dump as it wakes up.

    Args:
      operations: Names.
      target: "v5e", "v5p" or "v6e".
      shapes: Names of shapes; all if empty.
      dtype: "bfloat16" or "float32".
      implementations: Which of them.
      directions: Which of them.

    Returns:
      Rows without versions and date.

    Raises:
      ReslabError: If something does not compile.
    """
    request = operations, target, shapes, dtype, implementations, directions
    with bundles.environment() as (variables, directory):
        done = subprocess.run(
            command("reslab.commands.kernels", json.dumps([*request, directory])),
            env={**variables, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise ReslabError(f"bench: compiling for {target}", got=said[-1])
    rows = [Row(**fields) for fields in json.loads(done.stdout.splitlines()[-1])]
    for row in rows:
        others = [other for other in rows if other.key == row.key]
        (reference,) = [r for r in others if r.implementation == "reference"] or [None]
        if reference and reference.least_us and row.least_us:
            row.speedup = round(reference.least_us / row.least_us, 3)
    return rows


def _in_process(
    operations: Sequence[str],
    target: str,
    shapes: Sequence[str],
    dtype: str,
    implementations: Sequence[str],
    directions: Sequence[str],
    directory: str,
) -> Iterator[Row]:
    described = topology(TARGETS[target])
    sharding = SingleDeviceSharding(described.devices[0])
    wanted = [
        case
        for operation in operations
        for case in cases(operation, dtype)
        if not shapes or case.shape in shapes
    ]
    for case, direction, name in itertools.product(wanted, directions, implementations):
        run = case.kernel if name == "pallas" else case.reference
        arguments = case.arguments
        if direction == "both":
            run, arguments = case.both_ways(run)
        jitted = jax.jit(run, in_shardings=sharding, out_shardings=sharding)
        bundles.dumped(directory)
        program = compile_program(jitted.lower(*arguments))
        schedules = bundles.dumped(directory)
        yield _cost(case, direction, name, target, program.text, schedules)


def _cost(
    case: Case,
    direction: str,
    implementation: str,
    target: str,
    text: str | None,
    schedules: dict[str, bundles.Schedule],
) -> Row:
    chip, ideal = CHIPS[target], case.forward_bytes
    ideal += case.backward_bytes if direction == "both" else 0
    row = Row(
        *(case.operation, case.shape, case.dtype, direction, implementation, target),
        is_compiled=True,
        ideal_bytes=ideal,
    )
    if text is not None:
        # What is no kernel: they have rows of their own below.
        cost = program_cost(text, Machine(chip, shares={"": 0.0}))
        row.hbm_bytes = cost.hbm_bytes
        if implementation == "pallas":
            # The program's text says what a kernel is given, not what it copies.
            row.hbm_bytes -= case.unread_bytes * (1 + (direction == "both"))
        row.bytes_ratio = round(row.hbm_bytes / ideal, 3)
        row.estimate_us = round(cost.seconds * 1e6, 2)
        row.dma_us = round(row.hbm_bytes / chip.hbm_bandwidth * 1e6, 2)
    if implementation == "pallas":
        kernels = _kernels(case, schedules)
        steps = [
            (loop.steps, schedule.step_cycles(loop.parts, loop.chunks))
            for loop, schedule in kernels
        ]
        row.bundles_per_step = round(sum(cycles for _, cycles in steps))
        cycles = sum(count * cycles for count, cycles in steps) / CORES[target]
        row.compute_us = round(cycles / chip.clock * 1e6, 2)
        if row.dma_us is not None:
            row.bound = "compute" if row.compute_us > row.dma_us else "memory"
    return row


def _kernels(
    case: Case, schedules: dict[str, bundles.Schedule]
) -> list[tuple[Loop, bundles.Schedule]]:
    """The schedules of a case's kernels, each with its loops."""
    stem = "depth_read" if case.operation == "block_read" else case.operation
    stem = stem.removesuffix("_of_tokens").removeprefix("add_norm_")
    stem = stem.replace("stream_write", "stream_mix")
    return [
        (case.loops["backward" in name], schedule)
        for name, schedule in schedules.items()
        if stem in name and "fusion" not in name
    ]


# Run here.


def _measured(case: Case) -> Iterator[Row]:
    """Times both directions of what this device can run."""
    device = jax.devices()[0]
    if device.platform == "cpu" and case.forward_bytes > LARGEST_ON_CPU:
        return
    runs = {"reference": case.reference}
    if device.platform == "tpu":
        runs["pallas"] = case.kernel
    if device.platform == "gpu" and case.gpu_kernel:
        runs["pallas"] = case.gpu_kernel
    rng = np.random.default_rng(0)

    def numbers(shape):
        return jnp.asarray(rng.normal(size=shape.shape), shape.dtype)

    copied = _copied_per_second()
    for direction in ("forward", "both"):
        ideal = case.forward_bytes
        ideal += case.backward_bytes if direction == "both" else 0
        slowest = None
        for name, run in runs.items():
            arguments = case.arguments
            if direction == "both":
                run, arguments = case.both_ways(run)
            given, run = jax.tree.map(numbers, arguments), jax.jit(run)
            seconds = _median_seconds(lambda run=run, given=given: run(*given))
            slowest = slowest or seconds
            yield Row(
                *(case.operation, case.shape, case.dtype, direction, name),
                device=device.device_kind,
                is_compiled=False,
                ideal_bytes=ideal,
                measured_us=round(seconds * 1e6, 1),
                gigabytes_per_second=round(ideal / seconds / 1e9, 2),
                copy_fraction=round(ideal / seconds / copied, 3),
                speedup=round(slowest / seconds, 3),
            )


@functools.cache
def _copied_per_second() -> float:
    """Bytes read and written in a second by a copy that no cache holds."""
    size = 2**26 if jax.default_backend() == "cpu" else 2**30
    x = jnp.zeros(size // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * size / _median_seconds(lambda: copy(x))


def _median_seconds(run: Callable[[], Any], repeats: int = 20) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def as_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return text.getvalue()


def main(request: str) -> int:
    """Compiles what another process asks for, and prints the rows as JSON."""
    found = [dataclasses.asdict(row) for row in _in_process(*json.loads(request))]
    print(json.dumps(found))
    return 0
