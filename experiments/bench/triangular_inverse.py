"""Methods for the triangular systems of the delta rule: errors and compiled costs.

    python experiments/bench/triangular_inverse.py
    python experiments/bench/triangular_inverse.py --topology v5e:1x1

The first command writes, for n x n systems of n tokens, the relative error
(Frobenius, the worst of 16 draws) of each method beside the exact inverse, in float32
and with every result rounded to bfloat16. `random`: keys of 64 normal channels,
strengths uniform in (0, 1). `alike`: keys whose cosine is 0.9, strength 0.95.
`negative` and `negative_alike`: the same keys and strengths of 1.9, whose transitions
have negative eigenvalues. The second compiles 4,096 inverses in float32 for the absent
chip: the estimated time of the compiled schedule and the bytes to and from memory. Rows
are appended to experiments/bench/triangular_inverse.csv.

The default is "block": on v5e the cheapest stable method for n = 128 (19 ms), and 7.4
ms for 64, where forward substitution takes 5.4; its errors are below 8e-7 in float32.
"newton_schulz" is as exact and takes six times as long. "neumann" is wrong by 6e-5 at
16 and by 8e7 at 64 where keys are alike.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from _table import append

from reslab.observe.environment import environment
from reslab.ops.triangular_inverse.api import METHODS, triangular_inverse
from reslab.parallel.aot.cost import Machine, program_cost
from reslab.parallel.aot.program import compile_program
from reslab.parallel.aot.topology import topology

TABLE = pathlib.Path(__file__).with_name("triangular_inverse.csv")
SIZES = (16, 32, 64, 128)
CHANNELS, DRAWS, MATRICES = 64, 16, 4096
KEYS = ("random", "alike", "negative", "negative_alike")
FIELDS = ("method", "n", "keys", "dtype", "error", "target", "microseconds")
FIELDS = (*FIELDS, "megabytes", "jax", "commit")


def systems(size, keys):
    """Systems of one kind, float64, (draws, n, n)."""
    draw = np.random.default_rng(0)
    own = draw.normal(size=(DRAWS, size, CHANNELS))
    if keys.endswith("alike"):
        # So much of one common direction that the cosine of two keys is 0.9.
        common = draw.normal(size=(DRAWS, 1, CHANNELS))
        own = np.sqrt(0.1) * own + np.sqrt(0.9) * common
    key = own / np.linalg.norm(own, axis=-1, keepdims=True)
    strengths = {
        "random": draw.uniform(size=(DRAWS, size, 1)),
        "alike": 0.95,
        "negative": 1.9,
        "negative_alike": 1.9,
    }
    return np.tril(strengths[keys] * key @ np.swapaxes(key, 1, 2), -1)


def errors():
    """Rows of what each method loses."""
    for keys in KEYS:
        for size in SIZES:
            exact = systems(size, keys)
            for dtype in ("float32", "bfloat16"):
                given = jnp.asarray(exact, dtype)
                wanted = np.linalg.inv(np.eye(size) + np.float64(given))
                scale = np.linalg.norm(wanted, axis=(1, 2))
                for method in METHODS:
                    run = jax.jit(lambda a, m=method: triangular_inverse(a, method=m))
                    lost = np.linalg.norm(np.float64(run(given)) - wanted, axis=(1, 2))
                    yield {
                        "method": method,
                        "n": size,
                        "keys": keys,
                        "dtype": dtype,
                        "error": f"{np.max(lost / scale):.1e}",
                    }


def costs(name):
    """Rows of what each method takes on a chip that is not here."""
    target = topology(name)
    sharding = jax.sharding.SingleDeviceSharding(target.devices[0])
    for size in SIZES:
        given = jax.ShapeDtypeStruct((MATRICES, size, size), jnp.float32)
        for method in METHODS:
            run = jax.jit(
                lambda a, m=method: triangular_inverse(a, method=m),
                in_shardings=sharding,
            )
            program = compile_program(run.trace(given).lower())
            cost = program_cost(program.text, Machine(target.chip))
            yield {
                "method": method,
                "n": size,
                "dtype": "float32",
                "target": f"{name} compiled",
                "microseconds": f"{1e6 * cost.seconds:.0f}",
                "megabytes": f"{cost.hbm_bytes / 1e6:.0f}",
            }


def main():
    """Computes or compiles, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", action="append", default=[])
    options, about = parser.parse_args(), environment()
    common = {"jax": about["versions"]["jax"], "commit": about["commit"]}
    rows = [row for name in options.topology for row in costs(name)] or list(errors())
    append(TABLE, (row | common for row in rows), FIELDS)
    for row in rows:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    main()
