"""`reslab bench ops`: what kernels cost beside plain XLA, as rows of CSV."""

import datetime
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reslab.commands.compiled_kernels import TARGETS, compiled
from reslab.commands.measurements import Row
from reslab.core.errors import ReslabError, nearest
from reslab.observe.environment import environment
from reslab.ops.catalogue import OPERATIONS, Case, cases

# Largest difference over the largest number, in float32.
TOLERANCE = 1e-5
# A CPU runs only shapes that move at most this many bytes.
LARGEST_ON_CPU = 2**27


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


# Run here.


def _measured(case: Case) -> Iterator[Row]:
    """Times both directions of what this device can run."""
    device = jax.devices()[0]
    if device.platform == "cpu" and case.forward_bytes > LARGEST_ON_CPU:
        return
    runs = {"reference": case.reference}
    if device.platform == "tpu":
        runs["pallas"] = case.kernel
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


def _median_seconds(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return float(np.median(times))
