"""What an optimizer gains over a tuned adamw, in steps and in time.

Commands:  reslab sweep experiments/2026-11-21-optimizers/study.py --jobs 2
           reslab report DIRECTORY --out experiments/2026-11-21-optimizers/search.html
           reslab sweep experiments/2026-11-21-optimizers/study.py:best --jobs 2
Hardware:  2 CPU cores; with `study.py:tpu` one TPU v5e-8 host, not run yet

The first tries the same number of learning rates of every optimizer with one seed; the
last takes the best of each, as search.csv has them, with three other seeds.
"""

import csv
import math
import pathlib

from reslab.core.errors import ReslabError
from reslab.study.algebra import case, chain
from reslab.study.plan import Study

SEARCH = pathlib.Path(__file__).with_name("search.csv")
SMALL = {
    "model.features": 64,
    "model.depth": 4,
    "model.mixer": "attention(heads=2)",
    "data.length": 64,
    "data.batch": 16,
    "optim.schedule": "cosine(warmup=20)",
    "train.steps": 200,
    "train.eval_every": 25,
    "train.log_layers": False,
    "eval.batches": 4,
    "precision.compute": "float32",
    "probes.every": 0,
}
LARGE = {
    "model.features": 768,
    "model.depth": 24,
    "model.mixer": "attention(heads=12)",
    "model.remat": "dots",
    "data.length": 1024,
    "data.batch": 256,
    "optim.schedule": "cosine(warmup=200)",
    "train.steps": 5000,
    "train.eval_every": 250,
    "train.checkpoint_every": 500,
    "mesh.data": 1,
    "mesh.fsdp": -1,
}
SCALES = {"cpu": SMALL, "best": SMALL, "tpu": LARGE}
# Learning rates, around what their authors have; periods are short as the run is.
OPTIMIZERS = {
    "adamw": ("adamw", (1e-3, 3e-3, 6e-3, 1.2e-2)),
    "muon": ("muon", (3e-3, 1e-2, 2e-2, 4e-2)),
    "normuon": ("normuon", (3e-3, 1e-2, 2e-2, 4e-2)),
    "soap": ("soap", (1e-3, 3e-3, 6e-3, 1.2e-2)),
    "lamb": ("lamb", (3e-3, 1e-2, 2e-2, 4e-2)),
    "spectral": ("spectral(every=25)", (3e-3, 1e-2, 2e-2, 4e-2)),
    "noise_adaptive_muon": ("noise_adaptive_muon", (3e-3, 1e-2, 2e-2, 4e-2)),
    "drop_muon": ("drop_muon", (3e-3, 1e-2, 2e-2, 4e-2)),
    "heavy_tail": ("heavy_tail(every=25, blend=10)", (1e-3, 3e-3, 6e-3, 1.2e-2)),
    "normalize_and_project": ("normalize_and_project", (1e-3, 3e-3, 6e-3, 1.2e-2)),
}


def _case(name: str, rate: float, *, is_searched: bool):
    fields = {"optim.name": OPTIMIZERS[name][0], "optim.learning_rate": rate}
    return case(f"{name} lr={rate:g}" if is_searched else name, fields)


def _best() -> dict[str, float]:
    """The learning rate of each optimizer with the least held-out loss."""
    if not SEARCH.exists():
        raise ReslabError(
            f"{SEARCH.name} is missing", hint="sweep and report study.py first"
        )
    found: dict[str, tuple[float, float]] = {}
    with SEARCH.open(newline="") as file:
        for row in csv.DictReader(file):
            name, rate = row["case"].split(" lr=")
            loss = float(row["eval_bpb"] or math.inf)
            if not math.isfinite(loss):
                continue
            found[name] = min(found.get(name, (math.inf, 0.0)), (loss, float(rate)))
    return {name: rate for name, (_, rate) in found.items()}


def get_study(scale: str = "cpu") -> Study:
    """The search over learning rates, or what it found with other seeds."""
    if scale not in SCALES:
        raise ReslabError(f"scale {scale!r}", expected=" or ".join(SCALES))
    is_searched = scale != "best"
    rates = (
        {name: rates for name, (_, rates) in OPTIMIZERS.items()}
        if is_searched
        else {name: (rate,) for name, rate in _best().items()}
    )
    return Study(
        question=(
            "Which optimizers reach a tuned adamw's final loss in fewer steps or in "
            "less time, each with the best of four learning rates?"
        ),
        config="tiny",
        cases=chain(
            *(
                _case(name, rate, is_searched=is_searched)
                for name, tried in rates.items()
                for rate in tried
            )
        ),
        seeds=(0,) if is_searched else (1, 2, 3),
        extra_baseline_seeds=0,
        baseline="adamw lr=0.003" if is_searched else "adamw",
        overrides={
            # As in the runs that README.md reports.
            "model.post_embedding_norm": "none",
            "data.predicts_end": False,
            "train.keep_checkpoints": 1,
            **SCALES[scale],
        },
    )
