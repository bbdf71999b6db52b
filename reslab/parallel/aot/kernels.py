"""Compute time of a program's Pallas kernels, by their own schedules.

The text of a program says what a kernel is given, not what it does with it. Each
kernel is compiled once more, alone and in a process of its own, because libtpu reads
what to dump as it wakes up and writes a schedule of every fusion of a whole program:
that takes three times as long as compiling it.
"""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from reslab.parallel.aot import bundles
from reslab.parallel.aot.hlo import KERNEL, Instruction, Shape, parse
from reslab.parallel.aot.program import without_cache
from reslab.parallel.aot.topology import topology
from reslab.runtime.python import command

# One host; a single chip of some generations cannot be described.
HOSTS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}

_DTYPES = {"pred": "bool", "bf16": "bfloat16"}
_DTYPES |= {f"s{bits}": f"int{bits}" for bits in (4, 8, 16, 32)}
_DTYPES |= {f"u{bits}": f"uint{bits}" for bits in (4, 8, 16, 32)}
_DTYPES |= {"f16": "float16", "f32": "float32"}
# Memory spaces of the device, and of the chip.
_MEMORY, _CHIP = 0, 1
_known: dict[str, bundles.Cycles | None] = {}


def kernel_cycles(text: str, generation: str) -> dict[str, bundles.Cycles]:
    """Cycles of every Pallas kernel of a program, by the name of its instruction.

    Args:
      text: `compiled.as_text()`.
      generation: Of the chip: "v5e".

    Returns:
      Those of the kernels whose schedule could be read; `Cost` counts the others.
    """
    kernels = dict(_kernels(text, generation))
    missing = list(dict.fromkeys(k for k in kernels.values() if k not in _known))
    if missing:
        _known.update(zip(missing, _compiled(missing), strict=True))
    found = {name: _known[kernel] for name, kernel in kernels.items()}
    return {name: cycles for name, cycles in found.items() if cycles is not None}


def _kernels(text: str, generation: str) -> Iterator[tuple[str, str]]:
    """Names and what it takes to compile them, as JSON."""
    for computation in parse(text).computations.values():
        for one in computation.instructions.values():
            operands = [computation.instructions[name] for name in one.operands]
            given = [part.shapes[0] for part in operands if part.shapes]
            if one.target == KERNEL and (config := _config(one, given)):
                request = {
                    "generation": generation,
                    "config": config,
                    "operands": [_array(shape) for shape in given],
                    "results": [_array(shape) for shape in one.shapes],
                }
                yield one.name, json.dumps(request)


def _config(one: Instruction, given: Sequence[Shape]) -> Mapping[str, Any] | None:
    """The kernel itself, as its instruction holds it, its arrays where they lie.

    A kernel does not copy blocks of what is in the chip already.
    """
    found = re.search(r"\bbackend_config=(\{.*)", one.attributes)
    if not found:
        return None
    whole, _ = json.JSONDecoder().raw_decode(found[1])
    operands = [
        {"operand_index": place, "color": shape.space}
        for place, shape in enumerate(given)
        if shape.space in (_MEMORY, _CHIP)
    ]
    is_tuple = len(one.shapes) > 1
    results = [
        {"color": shape.space} | ({"shape_index": [place]} if is_tuple else {})
        for place, shape in enumerate(one.shapes)
        if shape.space in (_MEMORY, _CHIP)
    ]
    places = {
        "input_memory_space_colors": operands,
        "output_memory_space_colors": results,
    }
    return {"custom_call_config": {**whole["custom_call_config"], **places}}


def _array(shape: Shape) -> tuple[str, tuple[int, ...]]:
    return _DTYPES.get(shape.dtype, "float8_" + shape.dtype[2:]), shape.sizes


def _compiled(kernels: list[str]) -> list[bundles.Cycles | None]:
    """Compiles kernels in a process of its own."""
    with bundles.environment() as (variables, directory):
        done = subprocess.run(
            command("reslab.parallel.aot.kernels", directory),
            input=json.dumps(kernels),
            env={**variables, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        return [None] * len(kernels)
    found = json.loads(done.stdout.splitlines()[-1])
    return [one and bundles.Cycles(**one) for one in found]


def _alone(kernel: str, directory: str) -> bundles.Cycles | None:
    """Compiles one kernel here, and reads the schedule that is dumped."""
    request = json.loads(kernel)
    chip = topology(HOSTS[request["generation"]]).devices[0]
    operands, results = (
        [jax.ShapeDtypeStruct(tuple(sizes), dtype) for dtype, sizes in request[key]]
        for key in ("operands", "results")
    )
    call = jax.ffi.ffi_call(
        KERNEL,
        results,
        has_side_effect=True,  # Nothing reads its results.
        custom_call_api_version=1,
        legacy_backend_config=json.dumps(request["config"]),
    )
    jitted = jax.jit(
        lambda *given: call(*given), in_shardings=SingleDeviceSharding(chip)
    )
    try:
        with without_cache():  # It would return without a schedule.
            jitted.lower(*operands).compile()
    except jax.errors.JaxRuntimeError:
        return None  # It depends on the surrounding program.
    return bundles.dumped_cycles(directory, "ffi_call")


def main(directory: str) -> int:
    """Compiles the kernels that standard input lists, and prints their cycles."""
    found = [_alone(kernel, directory) for kernel in json.load(sys.stdin)]
    print(json.dumps([one and dataclasses.asdict(one) for one in found]))
    return 0
