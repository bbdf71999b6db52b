"""Thousands of steps on several CPU devices while other processes load the machine.

XLA's collectives between CPU devices of one process have been seen to deadlock
when the thread pool is as small as the machine. This trains a small model long
enough to meet that, with every core kept busy by somebody else, and fails if a run
does not end.

    python experiments/bench/soak.py --steps 5000 --devices 1,2,8
"""

import argparse
import csv
import datetime
import os
import subprocess
import sys
import tempfile
import time

SMALL = {
    "model.features": 32,
    "model.depth": 2,
    "model.mixer": "attention(heads=2)",
    "data.source": "synthetic(documents=400)",
    "data.length": 32,
    "data.batch": 8,
    "eval.batch": 8,
    "eval.batches": 2,
    "train.log_every": 100,
    "train.checkpoint_every": 1000,
    "train.eval_every": 1000,
}
# Keeps one core busy until it is told to end.
LOAD = "import numpy as np\nx = np.ones((300, 300))\nwhile True: x = x @ x / 300"


def _soak(devices, steps, limit):
    """Trains in a process of its own; returns its exit code and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "reslab", "train", "--config", "base"]
        command += ["--run", os.path.join(folder, "run")]
        fields = SMALL | {"train.steps": steps, "mesh.cpu_devices": devices}
        for key, value in fields.items():
            command += ["--set", f"{key}={value}"]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        began = time.perf_counter()
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "hang", time.perf_counter() - began
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
        return done.returncode, time.perf_counter() - began


def main():
    """Runs the soaks, prints and writes a row for each; exits 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--devices", default="1,2,8")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for a run")
    parser.add_argument("--csv", default="experiments/bench/soak.csv")
    options = parser.parse_args()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    load = [
        subprocess.Popen([sys.executable, "-c", LOAD], env=environment)
        for _ in range(os.cpu_count() or 1)
    ]
    rows = []
    try:
        for devices in map(int, options.devices.split(",")):
            code, seconds = _soak(devices, options.steps, options.limit)
            rows.append(
                {
                    "date": datetime.date.today().isoformat(),
                    "devices": devices,
                    "steps": options.steps,
                    "loading_processes": len(load),
                    "exit_code": code,
                    "seconds": round(seconds),
                }
            )
            print(rows[-1], flush=True)
    finally:
        for process in load:
            process.kill()
    with open(options.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return int(any(row["exit_code"] != 0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
