"""A corpus larger than the memory that it may take, from its text to training on it.

    python experiments/bench/large_corpus.py --gigabytes 5 --folder /tmp

Writes JSON lines of made-up text, tokenizes them with `reslab data tokenize` and trains
a small model on the tokens for some steps, each in a process of its own whose peak
resident memory the kernel reports. Needs four times the size on the disk; everything is
deleted afterwards. Appends a row to large_corpus.csv.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from _table import append

from reslab.observe.environment import environment
from reslab.runtime.exits import STOPPED

TABLE = pathlib.Path(__file__).with_suffix(".csv")
DOCUMENT = 64_000  # Bytes of text in a document.
STEPS = 50
TRAINING = {
    "model.features": 32,
    "model.depth": 1,
    "model.mixer": "attention(heads=2)",
    "data.length": 256,
    "data.batch": 16,
    "eval.batch": 16,
    "eval.batches": 1,
    "train.steps": 100_000,
    "train.log_every": 1,
    "optim.schedule": "constant",
    "probes.every": 0,
}


def write_text(path: pathlib.Path, size: int) -> None:
    """Writes documents of so many bytes in all; no two are the same."""
    words = "the layer reads what earlier layers wrote and adds its own to the stream "
    body = (words * (DOCUMENT // len(words) + 1))[:DOCUMENT]
    with path.open("w", buffering=2**22) as file:
        for number in range(size // DOCUMENT):
            file.write(json.dumps({"text": f"{number} {body}"}) + "\n")


def peak(
    arguments: list[str], metrics: pathlib.Path | None = None
) -> tuple[float, float]:
    """Runs `reslab` in a process; its peak resident MiB, and seconds.

    With `metrics` it is asked to stop once it has written as many steps as are asked
    for: a run ends with all held-out text, which would take hours here.
    """
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "reslab", *arguments], stdout=subprocess.DEVNULL
    )
    while metrics is not None:
        time.sleep(1)
        if pathlib.Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "Z":
            break
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= STEPS:
            break
    if metrics is not None:
        process.send_signal(signal.SIGTERM)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != (STOPPED if metrics else 0):
        sys.exit(f"reslab {arguments[0]}: exit {process.returncode}")
    return usage.ru_maxrss / 1024, time.monotonic() - begin


def main() -> None:
    """Measures, prints and records one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--folder", type=pathlib.Path, default=None)
    options = parser.parse_args()
    size = int(options.gigabytes * 1e9)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        text, tokens = pathlib.Path(folder) / "text.jsonl", f"{folder}/tokens"
        write_text(text, size)
        source = f"jsonl(path={str(text)!r})"
        tokenizing = peak(["data", "tokenize", source, "--out", tokens])
        record = json.loads((pathlib.Path(tokens) / "corpus.json").read_text())
        text.unlink()
        fields = TRAINING | {"data.source": f"tokens(path={tokens!r})"}
        sets = [f"--set={key}={value}" for key, value in fields.items()]
        run = ["--run", f"{folder}/run"]
        metrics = pathlib.Path(folder) / "run" / "metrics.jsonl"
        training = peak(["train", "--config", "base", *sets, *run], metrics)
    about = environment()
    row = {
        "text_bytes": record["bytes"],
        "documents": record["documents"],
        "tokens": sum(record["tokens"].values()),
        "tokenize_peak_mib": round(tokenizing[0]),
        "tokenize_seconds": round(tokenizing[1]),
        "train_steps": STEPS,
        "train_peak_mib": round(training[0]),
        "train_seconds": round(training[1]),
        "jax": about["versions"]["jax"],
        "commit": about["commit"],
    }
    append(TABLE, [row])
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
