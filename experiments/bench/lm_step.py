"""Tokens per second of one training step: reslab against PyTorch, same model.

Each contender is a process of its own that keeps its compiled step and waits to
be asked; the contenders take turns, a few steps each, so that a change in the
machine's speed meets all of them. Best and median are printed, with the ratio to
the better PyTorch of the same precision, and written as CSV.

    pip install -e '.[bench]'
    python experiments/bench/lm_step.py --sizes tiny,small --rounds 8

The model is that of configs/tiny.py at two sizes: pre-norm RMS, rotary causal
attention within packed documents, SwiGLU, untied head, AdamW with clipping. The
PyTorch one is written for this comparison with the same parameters and inputs.
"""

import argparse
import csv
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

SIZES = {
    "tiny": {"features": 128, "depth": 4, "length": 128, "batch": 16},
    "small": {"features": 256, "depth": 6, "length": 256, "batch": 16},
}
HEADS = 4
VOCABULARY = 257
CONTENDERS = (
    "reslab-float32-1device",
    "reslab-float32-2device",
    "reslab-bfloat16-1device",
    "reslab-bfloat16-2device",
    "torch-float32-eager",
    "torch-float32-compile",
    "torch-bfloat16-eager",
    "torch-bfloat16-compile",
)


def _inputs(size):
    """Packed documents: every row holds two, the same for every contender."""
    import numpy as np

    generator = np.random.default_rng(0)
    shape = (size["batch"], size["length"])
    column = np.broadcast_to(np.arange(size["length"]), shape)
    border = generator.integers(1, size["length"], (size["batch"], 1))
    segments = 1 + (column >= border)
    positions = np.where(column >= border, column - border, column)
    stream = generator.integers(0, VOCABULARY, (shape[0], shape[1] + 1))
    return {
        "tokens": stream[:, :-1].astype(np.int32),
        "targets": stream[:, 1:].astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "positions": positions.astype(np.int32),
        "loss_mask": np.ones(shape, bool),
    }


def _reslab_step(size, precision, kind):
    devices = int(kind.removesuffix("device"))
    os.environ["JAX_PLATFORMS"] = "cpu"

    import jax

    from reslab.core import config as configs
    from reslab.parallel.hosts import configure_cpu
    from reslab.parallel.mesh import make_mesh, place_on, use_mesh
    from reslab.train.state import make_setup
    from reslab.train.step import make_step

    configure_cpu(devices)
    config = configs.load("base")
    configs.update(
        config,
        {
            "model.features": size["features"],
            "model.depth": size["depth"],
            "model.mixer": f"attention(heads={HEADS})",
            "data.length": size["length"],
            "data.batch": size["batch"],
            "precision.compute": precision,
        }.items(),
    )
    setup = make_setup(config, make_mesh(config.mesh))
    step = jax.jit(make_step(setup), donate_argnums=0)
    state = setup.init()
    batch = place_on(setup.mesh)(_inputs(size))

    def run():
        nonlocal state
        with use_mesh(setup.mesh):
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
        return float(metrics["loss"])

    return run


def _torch_step(size, precision, kind):
    import math

    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    width, head_dim = size["features"], size["features"] // HEADS
    hidden = 32 * math.ceil(width * 8 / 3 / 32)
    inputs = {k: torch.from_numpy(v) for k, v in _inputs(size).items()}
    inputs = {k: v.long() if v.dtype == torch.int32 else v for k, v in inputs.items()}
    half = head_dim // 2
    frequency = 10_000.0 ** (-torch.arange(half) * 2 / head_dim)
    angle = inputs["positions"][:, None, :, None] * frequency
    sine, cosine = angle.sin(), angle.cos()
    same = inputs["segment_ids"][:, :, None] == inputs["segment_ids"][:, None]
    visible = (same & torch.ones(size["length"], size["length"]).tril().bool())[:, None]

    def rotate(x):
        a, b = x.split(half, -1)
        turned = (a * cosine - b * sine, b * cosine + a * sine)
        return torch.cat(turned, -1).to(x.dtype)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.out = nn.Linear(width, width, bias=False)
            self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
            self.down = nn.Linear(hidden, width, bias=False)

        def forward(self, x):
            shape = (*x.shape[:2], HEADS, head_dim)
            q, k, v = (
                h.reshape(shape).transpose(1, 2)
                for h in self.qkv(self.norm1(x)).split(width, -1)
            )
            y = F.scaled_dot_product_attention(
                rotate(q), rotate(k), v, attn_mask=visible
            )
            x = x + self.out(y.transpose(1, 2).reshape(x.shape))
            gate, up = self.gate_up(self.norm2(x)).split(hidden, -1)
            return x + self.down(F.silu(gate) * up)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            rows = 8 * math.ceil(VOCABULARY / 8)
            self.embedding = nn.Embedding(rows, width)
            self.layers = nn.ModuleList(Layer() for _ in range(size["depth"]))
            self.norm = nn.RMSNorm(width)
            self.head = nn.Linear(width, rows, bias=False)

        def forward(self, tokens):
            x = self.embedding(tokens)
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x))

    model = Decoder()
    optimizer = torch.optim.AdamW(
        model.parameters(), 3e-3, (0.9, 0.95), weight_decay=0.1, fused=True
    )
    forward = torch.compile(model) if kind == "compile" else model

    def run():
        autocast = torch.autocast("cpu", torch.bfloat16, precision == "bfloat16")
        with autocast:
            logits = forward(inputs["tokens"])
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(), inputs["targets"].flatten()
        )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def _work(contender, size):
    """Child process: compiles, then runs as many steps as each line asks for."""
    framework, precision, kind = contender.split("-")
    make = {"reslab": _reslab_step, "torch": _torch_step}[framework]
    began = time.perf_counter()
    run = make(SIZES[size], precision, kind)
    run(), run()
    print(json.dumps({"warmup": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            loss = run()
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"seconds": seconds, "loss": loss}), flush=True)


def _measure(size, contenders, rounds, steps):
    children = {}
    for contender in contenders:
        command = [sys.executable, __file__, "--child", contender, "--sizes", size]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        child = subprocess.Popen(command, **pipes)
        warmup = json.loads(child.stdout.readline())["warmup"]
        print(f"{size} {contender}: ready after {warmup:.0f} s", flush=True)
        children[contender] = child
    seconds = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, child in children.items():
            print(steps, file=child.stdin, flush=True)
            seconds[contender] += json.loads(child.stdout.readline())["seconds"]
    for child in children.values():
        child.stdin.close()
        child.wait()
    return seconds


def _commit():
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _cpu():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return f"{names[0]} x{len(names)}" if names else platform.processor()


def main():
    """Measures, prints the table and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="tiny,small")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--csv", default="experiments/bench/lm_step.csv")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _work(options.child, options.sizes)
        return
    rows = []
    for size in options.sizes.split(","):
        contenders = options.contenders.split(",")
        seconds = _measure(size, contenders, options.rounds, options.steps)
        tokens = SIZES[size]["length"] * SIZES[size]["batch"]
        best = {c: tokens / min(s) for c, s in seconds.items()}
        median = {c: tokens / statistics.median(s) for c, s in seconds.items()}
        for contender in contenders:
            precision = contender.split("-")[1]
            peers = [c for c in contenders if c.startswith(f"torch-{precision}")]
            ratios = [
                speed[contender] / max(speed[p] for p in peers) if peers else None
                for speed in (best, median)
            ]
            rows.append(
                {
                    "date": datetime.date.today().isoformat(),
                    "commit": _commit(),
                    "cpu": _cpu(),
                    "size": size,
                    "contender": contender,
                    "steps": len(seconds[contender]),
                    "best_tokens_per_second": round(best[contender]),
                    "median_tokens_per_second": round(median[contender]),
                    "best_ratio_to_torch": ratios[0] and round(ratios[0], 3),
                    "median_ratio_to_torch": ratios[1] and round(ratios[1], 3),
                }
            )
            print({k: v for k, v in rows[-1].items() if k not in ("date", "cpu")})
    with open(options.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {options.csv}")


if __name__ == "__main__":
    main()
