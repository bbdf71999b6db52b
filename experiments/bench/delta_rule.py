"""Seconds of the delta rule, forward and backward, in chunks and token by token.

    python experiments/bench/delta_rule.py

All forms take turns in one process, so that all see the machine in the same state;
figures are medians. Rows are appended to experiments/bench/delta_rule.csv.
"""

import argparse
import os
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from _table import append

from reslab.observe.environment import environment
from reslab.ops.delta_rule.api import delta_rule

TABLE = pathlib.Path(__file__).with_name("delta_rule.csv")
DECAYS = {"none": None, "heads": (), "channels": ("key_dim",)}
FORMS = {"recurrent": {"implementation": "recurrent"}}
FORMS |= {f"chunked {size}": {"chunk": size} for size in (16, 32, 64, 128)}


def example(decays, options):
    """Arguments of the rule, float32."""
    keys = jax.random.split(jax.random.key(0), 5)
    tokens = 1, options.length, options.heads
    query, key = (
        jax.random.normal(keys[n], (*tokens, options.key_dim)) for n in (0, 1)
    )
    key = key / jnp.linalg.norm(key, axis=-1, keepdims=True)
    value = jax.random.normal(keys[2], (*tokens, options.value_dim))
    beta = jax.nn.sigmoid(jax.random.normal(keys[3], tokens))
    if DECAYS[decays] is None:
        return query, key, value, beta
    shape = (*tokens, *(getattr(options, name) for name in DECAYS[decays]))
    return query, key, value, beta, -0.1 * jax.random.uniform(keys[4], shape)


def main():
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--key-dim", type=int, default=64)
    parser.add_argument("--value-dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options, about = parser.parse_args(), environment()
    programs = {}
    for decays in DECAYS:
        arguments = example(decays, options)
        for form, how in FORMS.items():

            def total(*arguments, how=how):
                return jnp.sum(jnp.sin(delta_rule(*arguments, **how)[0]))

            run = jax.jit(jax.value_and_grad(total, argnums=range(len(arguments))))
            programs[decays, form] = run, arguments
    times = {name: [] for name in programs}
    for _ in range(options.rounds + 1):
        for name, (run, arguments) in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            times[name].append(time.perf_counter() - begin)
    seconds = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    rows = [
        {
            "decays": decays,
            "form": form,
            "seconds": f"{taken:.4f}",
            "over_recurrent": f"{seconds[decays, 'recurrent'] / taken:.2f}",
            "length": options.length,
            "heads": options.heads,
            "key_dim": options.key_dim,
            "value_dim": options.value_dim,
            "target": about["device_kind"],
            "load": f"{os.getloadavg()[0]:.1f}",
            "jax": about["versions"]["jax"],
            "commit": about["commit"],
        }
        for (decays, form), taken in seconds.items()
    ]
    append(TABLE, rows)
    for row in rows:
        print(*list(row.values())[:4], sep="\t")


if __name__ == "__main__":
    main()
