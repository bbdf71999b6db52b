"""Operations compiled for an absent TPU, in a process of their own."""

import dataclasses
import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from reslab.commands.measurements import Row
from reslab.core.errors import ReslabError
from reslab.ops.catalogue import Case, Loop, cases
from reslab.parallel.aot import bundles
from reslab.parallel.aot.cost import Machine, program_cost
from reslab.parallel.aot.program import compile_program
from reslab.parallel.aot.topology import CHIPS, topology
from reslab.runtime.python import command

# A single chip cannot be described; its program is compiled for one of a host's.
TARGETS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


# Cores that share a chip's memory, and a kernel's parallel axes.
CORES = {"v5e": 1, "v5p": 2, "v6e": 1}


def compiled(
    operations: Sequence[str],
    target: str,
    shapes: Sequence[str],
    dtype: str = "bfloat16",
    implementations: Sequence[str] = ("reference", "pallas"),
    directions: Sequence[str] = ("forward", "both"),
) -> list[Row]:
    """Compiles for a chip that is not here.

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
    request = operations, target, shapes, dtype
    found = [
        _elsewhere([*request, [name], directions], target, name)
        for name in implementations
    ]
    rows = [row for rows in zip(*found, strict=True) for row in rows]
    for row in rows:
        others = [other for other in rows if other.key == row.key]
        (reference,) = [r for r in others if r.implementation == "reference"] or [None]
        if reference and reference.least_us and row.least_us:
            row.speedup = round(reference.least_us / row.least_us, 3)
    return rows


def _elsewhere(request: list[Any], target: str, implementation: str) -> list[Row]:
    """Compiles in a process of its own: libtpu reads what to dump as it wakes up.

    Schedules of every fusion take three times as long as the program: plain XLA, whose
    schedules are not read, is compiled without.
    """
    with bundles.environment() as (variables, directory):
        if implementation == "reference":
            variables, directory = os.environ, ""
        done = subprocess.run(
            command(
                "reslab.commands.compiled_kernels", json.dumps([*request, directory])
            ),
            env={**variables, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise ReslabError(f"bench: compiling for {target}", got=said[-1])
    return [Row(**fields) for fields in json.loads(done.stdout.splitlines()[-1])]


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
        if directory:
            bundles.dumped(directory)
        program = compile_program(jitted.lower(*arguments))
        schedules = bundles.dumped(directory) if directory else {}
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
        # Operations outside of kernels have rows of their own below.
        cost = program_cost(text, Machine(chip, shares={"": 0.0}))
        row.hbm_bytes = cost.hbm_bytes
        if implementation == "pallas":
            # The program's text names a kernel's operands, not the bytes it copies.
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
    stem = stem.removesuffix("_of_tokens")
    stem = stem.replace("stream_write", "stream_mix")
    return [
        (case.loops["backward" in name], schedule)
        for name, schedule in schedules.items()
        if stem in name and "fusion" not in name
    ]


def main(request: str) -> int:
    """Compiles what another process asks for, and prints the rows as JSON."""
    found = [dataclasses.asdict(row) for row in _in_process(*json.loads(request))]
    print(json.dumps(found))
    return 0
