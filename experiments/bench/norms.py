"""What each norm costs: forward and backward, against Flax's LayerNorm and RMSNorm.

    python experiments/bench/norms.py
    python experiments/bench/norms.py --topology v5e:1x1 --topology v5p:1x1x1

On this machine all norms take turns in one process, so that all see it in the same
state; figures are medians, and ratios to Flax's RMSNorm. The arrays are of 2 MB: with
larger ones the system's handing out of memory is what is timed. For a topology the same
program is compiled for the absent chip: bytes to and from its memory, trip-aware,
over the least there could be (read x and its gradient, write y and that of x).
Appends rows to experiments/bench/norms.csv.
"""

import argparse
import pathlib
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
from _table import append

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS, model_state_of
from reslab.core.trees import unbox
from reslab.nn.base.norm import needs_batch
from reslab.observe.environment import environment
from reslab.parallel.aot.cost import Machine, program_cost
from reslab.parallel.aot.program import compile_program
from reslab.parallel.aot.topology import topology

TABLE = pathlib.Path(__file__).with_name("norms.csv")
FLAX = {"flax.RMSNorm": nn.RMSNorm, "flax.LayerNorm": nn.LayerNorm}


def example(name, shape, dtype):
    """The norm's forward and backward pass, and arguments for it."""
    is_flax = name in FLAX
    norm = FLAX[name](dtype=dtype) if is_flax else registry.make("norms", name)
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    mask = jnp.ones(shape[:-1], bool)
    extra = (mask,) if not is_flax and needs_batch(name) else ()
    variables = unbox(norm.init(jax.random.key(1), x))
    state = model_state_of(variables)
    still = state.pop(GRADIENT_STATS, {})

    def pass_(params, still, x, cotangent):
        def run(params, still, x):
            y, written = norm.apply(
                {"params": params, **state, GRADIENT_STATS: still},
                x,
                *extra,
                mutable=[BATCH_STATS],
            )
            return y, written

        y, pull, written = jax.vjp(run, params, still, x, has_aux=True)
        return y, pull(cotangent), written

    return pass_, (variables.get("params", {}), still, x, x)


def names():
    """Flax's two, then all of ours."""
    return [*FLAX, *registry.names("norms")]


def measured(chosen, shape, dtype, rounds):
    """Median seconds of these norms, taking turns."""
    programs = {}
    for name in chosen:
        try:
            function, arguments = example(name, shape, dtype)
        except ReslabError as error:
            print(f"{name}: {error}")
            continue
        programs[name] = jax.jit(function), arguments
    times = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, (function, arguments) in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def compiled(name, shape, dtype, target):
    """Bytes of memory traffic of the program compiled for a chip."""
    function, arguments = example(name, shape, dtype)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
    sharding = jax.sharding.SingleDeviceSharding(target.devices[0])
    lowered = jax.jit(function, in_shardings=sharding).trace(*shapes).lower()
    program = compile_program(lowered)
    cost = program_cost(program.text, Machine(target.chip))
    return cost.hbm_bytes


def main():
    """Measures or compiles, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--rows", type=int, help="default: 512, compiled 4096")
    parser.add_argument("--norm", nargs="*", help="default: all")
    parser.add_argument("--width", type=int, default=1024)
    options = parser.parse_args()
    options.rows = options.rows or (4096 if options.topology else 512)
    chosen = options.norm or names()
    shape, about, rows = (8, options.rows // 8, options.width), environment(), []
    common = {
        "shape": "x".join(map(str, shape)),
        "jax": about["versions"]["jax"],
        "commit": about["commit"],
    }
    if not options.topology:
        chosen = [*FLAX, *(name for name in chosen if name not in FLAX)]
        seconds = measured(chosen, shape, jnp.float32, options.rounds)
        for name, taken in seconds.items():
            ratio = taken / seconds["flax.RMSNorm"]
            row = {"norm": name, "target": about["device_kind"], "dtype": "float32"}
            row |= {"seconds": f"{taken:.6f}", "over_flax_rms": f"{ratio:.3f}"}
            rows.append(row | {"bytes": "", "over_least": ""} | common)
    for one in options.topology:
        target = topology(one)
        least = 4 * 2 * options.rows * options.width
        for name in chosen:
            try:
                total = compiled(name, shape, jnp.bfloat16, target)
            except ReslabError as error:
                print(f"{name}: {error}")
                continue
            row = {"norm": name, "target": f"{one} compiled", "dtype": "bfloat16"}
            row |= {"seconds": "", "over_flax_rms": "", "bytes": f"{total:.0f}"}
            rows.append(row | {"over_least": f"{total / least:.3f}"} | common)
    append(TABLE, rows)
    for row in rows:
        print(
            f"{row['norm']:24} {row['target']:18} {row['seconds'] or row['bytes']:>12} "
            f"{row['over_flax_rms'] or row['over_least']:>7}"
        )


if __name__ == "__main__":
    main()
