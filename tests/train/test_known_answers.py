"""Answers that are known: a problem that does not show them may not judge anything."""

import pytest

from reslab.core import config as configs
from reslab.train import loop

pytestmark = pytest.mark.conformance
BASE = {
    "train.task": "graded",
    "model.features": 32,
    "model.depth": 2,
    "model.mixer": "attention(heads=2)",
    "model.scales_output_by_depth": False,
    "precision.compute": "float32",
    "optim.schedule": "cosine(warmup=20)",
    "probes.every": 0,
    "eval.batch": 256,
    "eval.batches": 1,
}


@pytest.fixture
def errors(tmp_path):
    """Trains on a problem; returns the final errors."""

    def run(source, length, batch, steps, rate, **changes):
        config = configs.load("tiny")
        ends = ("train.steps", "train.log_every", "train.eval_every")
        fields = BASE | dict.fromkeys((*ends, "train.checkpoint_every"), steps)
        fields |= {
            "data.source": source,
            "data.length": length,
            "data.batch": batch,
            "optim.learning_rate": rate,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        configs.update(config, fields.items())
        found = loop.train(config, tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        return {k.removeprefix("eval_"): v for k, v in found.items()}

    return run


def test_recall_needs_two_layers(errors):
    asked = ("recall(pairs=4, keys=16)", 12, 64, 200, 6e-3)
    assert errors(*asked, model__depth=1)["error"] > 0.4
    assert errors(*asked, model__depth=2)["error"] < 0.05


def test_one_hop_needs_two_layers_and_two_hops_more(errors):
    asked = ("hops(nodes=6, hops=2, queries=12)", 24, 64, 300, 4e-3)
    wide = {"model__features": 64}
    assert errors(*asked, model__depth=1, **wide)["error_hop_1"] > 0.5
    found = errors(*asked, **wide)
    assert found["error_hop_1"] < 0.05 < 0.2 < found["error_hop_2"]


def test_parity_beyond_the_length_needs_negative_eigenvalues(errors):
    asked = ("tracking(group='parity')", 12, 32, 300, 1e-2)
    changes = {"eval__length": 24, "model__depth": 1}
    mixer = "gated_delta(heads=2{})"
    found = errors(*asked, model__mixer=mixer.format(""), **changes)
    assert found["error_fourth"] > 0.3
    negative = mixer.format(", allow_negative_eigenvalues=True")
    found = errors(*asked, model__mixer=negative, **changes)
    assert found["error_fourth"] < 0.1


def test_selecting_needs_content(errors):
    asked = ("selective_copy(symbols=8, count=4)", 24, 64, 300, 6e-3)
    assert errors(*asked)["error"] < 0.05
    assert errors(*asked, model__mixer="short_convolution")["error"] > 0.4


def test_memory_is_bounded_by_parameters(errors):
    asked = (48, 32, 300, 1e-2)
    assert errors("memory(facts=256, symbols=64)", *asked)["error"] < 0.05
    assert errors("memory(facts=2048, symbols=64)", *asked)["error"] > 0.3


def test_facts_that_were_not_seen_are_not_known(errors):
    found = errors("facts(symbols=12, seen=0.8)", 3, 256, 400, 6e-3)
    assert found["error_trained"] < 0.05
    assert found["error_no_second"] > 0.7  # Chance is 0.92.
