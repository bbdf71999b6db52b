"""Seconds of recurrent layers on a CPU, beside those of `transformers`.

    export RESLAB_TEST_TRANSFORMERS=/venv/bin/python
    python experiments/bench/torch_references.py

Another Python, which has torch and `transformers`, computes on the same arrays and
takes turns with this one, so that both see the machine in the same state; figures are
medians, forward and forward with backward, float32, as many threads as there are cores.

    delta_rule  the gated delta rule in chunks of 64, of the length of the option,
                against `torch_chunk_gated_delta_rule` (Qwen3-Next; flash-linear-
                attention's reference in torch, by a triangular solver)
    mamba2      a model of one layer, at half of the length, against
                `Mamba2ForCausalLM` without kernels of its own

What the other computes must be equal to 1e-3, or nothing is recorded. Rows are
appended to experiments/bench/torch_references.csv.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

TABLE = pathlib.Path(__file__).with_name("torch_references.csv")
MAMBA2 = {
    "vocab_size": 256,
    "hidden_size": 512,
    "num_hidden_layers": 1,
    "num_heads": 16,
    "head_dim": 64,
    "n_groups": 1,
    "state_size": 64,
    "chunk_size": 64,
    "expand": 2,
}
TOLERANCE = 1e-3


def timed(run):
    """Seconds of a call, and what it returns."""
    begin = time.perf_counter()
    found = run()
    return time.perf_counter() - begin, found


def worker(folder):
    """Computes what lines of standard input ask for, with torch."""
    import torch
    import transformers
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    given = {k: torch.from_numpy(v) for k, v in np.load(f"{folder}/in.npz").items()}
    torch.manual_seed(0)
    config = transformers.Mamba2Config(**MAMBA2)
    model = transformers.Mamba2ForCausalLM(config)
    model.save_pretrained(f"{folder}/mamba2")
    rule = [
        given[k].requires_grad_() for k in ("query", "key", "value", "decay", "beta")
    ]

    def delta_rule():
        return qwen.torch_chunk_gated_delta_rule(*rule, chunk_size=64)[0]

    def mamba2():
        return model(given["tokens"], use_cache=False).logits

    def both(run):
        def whole():
            run().sin().sum().backward()

        return whole

    def forward(run):
        def whole():
            with torch.no_grad():
                return run()

        return whole

    runs = {"delta_rule": delta_rule, "mamba2": mamba2}
    for name, run in runs.items():
        np.save(f"{folder}/{name}.npy", forward(run)().numpy())
    about = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        name, way = line.split()
        print(timed({"forward": forward, "both": both}[way](runs[name]))[0], flush=True)


def ours(folder, given):
    """The same functions, and what they return."""
    import jax
    import jax.numpy as jnp

    from reslab.ops.delta_rule.api import delta_rule
    from reslab.train.loading import load

    found = load(pathlib.Path(folder, "mamba2"))
    names = "query", "key", "value", "beta", "decay"
    arguments = tuple(jnp.asarray(given[name]) for name in names)
    tokens = jnp.asarray(given["tokens"], jnp.int32)

    def rule(arguments):
        return delta_rule(*arguments, chunk=64)[0]

    def logits(params):
        return found.model.apply({**found.variables, "params": params}, tokens)

    cases = {"delta_rule": (rule, arguments)}
    cases["mamba2"] = logits, found.variables["params"]
    runs = {}
    for name, (run, first) in cases.items():

        def total(first, run=run):
            return jnp.sum(jnp.sin(run(first)))

        ways = {"forward": jax.jit(run), "both": jax.jit(jax.grad(total))}
        for way, function in ways.items():

            def call(function=function, first=first):
                return jax.block_until_ready(function(first))

            runs[name, way] = call
    for name in cases:
        theirs = np.load(f"{folder}/{name}.npy")
        apart = np.max(np.abs(np.asarray(runs[name, "forward"]()) - theirs))
        apart /= np.max(np.abs(theirs))
        if not apart <= TOLERANCE:
            raise SystemExit(f"{name}: differs by {apart:.2g} of the largest number")
    return runs


def example(length):
    """Arrays of both."""
    draw = np.random.default_rng(0)
    tokens = 1, length, 4
    query, key, value = (draw.normal(size=(*tokens, 64)) for _ in range(3))
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    beta = 1 / (1 + np.exp(-draw.normal(size=tokens)))
    arrays = {"query": query, "key": key, "value": value, "beta": beta}
    arrays["decay"] = -0.1 * draw.uniform(size=tokens)
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    return arrays | {"tokens": draw.integers(0, 256, (1, length // 2))}


def main():
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    from _table import append

    from reslab.observe.environment import environment

    python, about = os.environ["RESLAB_TEST_TRANSFORMERS"], environment()
    with tempfile.TemporaryDirectory() as folder:
        given = example(options.length)
        np.savez(f"{folder}/in.npz", **given)
        command = [python, __file__, "--worker", folder]
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables | {"HF_HUB_OFFLINE": "1"},
        ) as other:
            versions = json.loads(other.stdout.readline())
            runs = ours(folder, given)
            times = {key: ([], []) for key in runs}
            for _ in range(options.rounds + 1):
                for key, run in runs.items():
                    times[key][0].append(timed(run)[0])
                    other.stdin.write(" ".join(key) + "\n")
                    other.stdin.flush()
                    times[key][1].append(float(other.stdout.readline()))
            other.stdin.close()
    common = {"target": about["device_kind"], "load": f"{os.getloadavg()[0]:.1f}"}
    common |= {"jax": about["versions"]["jax"], **versions, "commit": about["commit"]}
    rows = []
    for (name, way), taken in times.items():
        here, there = (statistics.median(one[1:]) for one in taken)
        rows.append(
            {
                "case": name,
                "direction": way,
                "tokens": options.length // (1 + (name == "mamba2")),
                "seconds": f"{here:.4f}",
                "torch_seconds": f"{there:.4f}",
                "over_torch": f"{there / here:.2f}",
            }
        )
    append(TABLE, [row | common for row in rows])
    for row in rows:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    main()
