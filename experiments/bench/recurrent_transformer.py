"""Bytes to and from memory of the Recurrent Transformer's layer, compiled.

    python experiments/bench/recurrent_transformer.py --topology v5e:1x1
    python experiments/bench/recurrent_transformer.py --measure --lengths 2048

The first compiles the forward pass of one layer (width 1,024, 16 heads, eight rows,
bfloat16) for the absent chip, as a scan over tokens and in tiles, and writes the bytes
that the compiled schedule moves, parameters included, to
experiments/bench/recurrent_transformer.csv.

From 512 to 4,096 tokens the bytes of tiles grow 18-fold, where length times logarithm
(of leaves of 64 tokens) grows 16-fold and the square 64-fold; to 8,192 tokens 56-fold,
37-fold and 256-fold. What exceeds the logarithm is keys that are read again for every
128 queries, as many as have their scores in the chip at once: at 8,192 tokens up to 17
of 40 GB, counted by hand. The scan moves 4.4 and 9.0 GB while all keys stay in the
chip, and 5,744 GB at 8,192 tokens; its time is then estimated as 11.6 s, that of tiles
as 0.45 s.

The second measures the forward pass of four rows by a smaller layer (width 256, 4
heads, float32) on the device that is here: the forms take turns, and rows hold medians.
At 2,048 tokens on two CPU cores that other work shared, tiles took 1.8 s and the scan
9.6 s. With a cache a prompt is always read in tiles.
"""

import argparse
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from _table import append

from reslab.core import registry
from reslab.core.surroundings import Context
from reslab.observe.environment import environment
from reslab.parallel.aot.cost import Machine, program_cost
from reslab.parallel.aot.program import compile_program
from reslab.parallel.aot.topology import topology

TABLE = pathlib.Path(__file__).with_name("recurrent_transformer.csv")
FORMS = {"naive": "form='naive'", "tiles": "tile=64"}
FIELDS = ("form", "length", "target", "megabytes", "microseconds", "jax", "commit")
ROWS, WIDTH, HEADS = 8, 1024, 16
SMALL = {"rows": 4, "width": 256, "heads": 4}


def costs(name, lengths):
    """Rows of what each form takes on a chip that is not here."""
    target = topology(name)
    sharding = jax.sharding.SingleDeviceSharding(target.devices[0])
    for length in lengths:
        x = jax.ShapeDtypeStruct((ROWS, length, WIDTH), jnp.bfloat16)
        places = jax.ShapeDtypeStruct((ROWS, length), jnp.int32)
        for form, option in FORMS.items():
            block = registry.make(
                "blocks",
                f"recurrent_transformer({option})",
                mixer=f"attention(heads={HEADS})",
                ffn="gelu",
                context=Context(position="alibi", dtype=jnp.bfloat16),
            )

            def init(x, places, block=block):
                key = jax.random.key(0)
                return block.init(key, x, {}, layer=0, positions=places)

            def run(variables, x, places, block=block):
                return block.apply(variables, x, {}, layer=0, positions=places)[0]

            variables = jax.eval_shape(init, x, places)
            run = jax.jit(run, in_shardings=sharding)
            program = compile_program(run.trace(variables, x, places).lower())
            cost = program_cost(program.text, Machine(target.chip))
            yield {
                "form": form,
                "length": length,
                "target": f"{name} compiled",
                "megabytes": f"{cost.hbm_bytes / 1e6:.0f}",
                "microseconds": f"{1e6 * cost.seconds:.0f}",
            }


def measured(lengths, repeats=3):
    """Rows of what the forward pass of each form takes on this machine."""
    for length in lengths:
        shape = SMALL["rows"], length
        x = jax.random.normal(jax.random.key(1), (*shape, SMALL["width"]))
        places = jnp.broadcast_to(jnp.arange(length), shape)
        runs = {}
        for form, option in FORMS.items():
            block = registry.make(
                "blocks",
                f"recurrent_transformer({option})",
                mixer=f"attention(heads={SMALL['heads']})",
                ffn="gelu",
                context=Context(position="alibi"),
            )

            def forward(variables, x, places, block=block):
                return block.apply(variables, x, {}, layer=0, positions=places)[0]

            # Parameters of few tokens are those of all.
            few = (x[:, :8], {})
            variables = jax.jit(
                lambda key, block=block, few=few, places=places: block.init(
                    key, *few, layer=0, positions=places[:, :8]
                )
            )(jax.random.key(0))
            runs[form] = jax.jit(forward), variables
            jax.block_until_ready(runs[form][0](variables, x, places))
        seconds = {form: [] for form in FORMS}
        for _ in range(repeats):
            for form, (run, variables) in runs.items():
                begin = time.perf_counter()
                jax.block_until_ready(run(variables, x, places))
                seconds[form].append(time.perf_counter() - begin)
        for form, taken in seconds.items():
            yield {
                "form": f"{form} (small)",
                "length": length,
                "target": f"{jax.default_backend()} measured",
                "megabytes": "",
                "microseconds": f"{1e6 * statistics.median(taken):.0f}",
            }


def main():
    """Compiles or measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:1x1")
    lengths = [512, 1024, 2048, 4096, 8192]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--measure", action="store_true", help="run it here instead")
    options, about = parser.parse_args(), environment()
    common = {"jax": about["versions"]["jax"], "commit": about["commit"]}
    rows = costs(options.topology, options.lengths)
    if options.measure:
        rows = measured(options.lengths)
    for row in rows:
        append(TABLE, [row | common], FIELDS)
        print(*row.values(), sep="\t", flush=True)


if __name__ == "__main__":
    main()
