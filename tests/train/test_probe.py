"""Looking inside a run changes nothing about it, and can be done afterwards."""

import json

import jax
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.train import loop
from reslab.train.probe import inspect_run, table
from reslab.train.run import Run

LOOKING = {"probes__every": 8, "probes__names": ("stream", "gradient", "update")}


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory, small_config):
    """A run that was looked at while it trained."""
    directory = tmp_path_factory.mktemp("looked_at") / "run"
    loop.train(small_config(**LOOKING), directory)
    return directory


def rows(directory, name):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def test_losses_are_the_same_with_and_without(tmp_path, looked_at, small_config):
    loop.train(small_config(), tmp_path / "run")
    for with_, without in zip(
        rows(looked_at, "metrics.jsonl"),
        rows(tmp_path / "run", "metrics.jsonl"),
        strict=True,
    ):
        for key in ("loss", "gradient_norm", "eval_loss", "bpb"):
            assert with_.get(key) == without.get(key)


def test_the_step_is_the_same_program(small_config, monkeypatch):
    """Off costs nothing: what is compiled for a step does not know of probes."""

    def program(config):
        setup, corpus = loop.prepare(config)
        trainer = loop._Trainer(setup, corpus, *[None] * 5)
        batch = jax.eval_shape(
            lambda: {
                key: jax.numpy.zeros((8, 16), dtype)
                for key, dtype in {
                    "tokens": "int32",
                    "targets": "int32",
                    "positions": "int32",
                    "segment_ids": "int32",
                    "loss_mask": "bool",
                }.items()
            }
        )
        with loop.use_mesh(setup.mesh):
            return trainer._step.lower(setup.shapes, batch).as_text()

    assert program(small_config()) == program(small_config(**LOOKING))


def test_when_a_run_is_looked_at(looked_at):
    found = rows(looked_at, "probes.jsonl")
    assert [row["step"] for row in found] == [0, 8, 12]
    assert len(found[0]["stream/norm"]) == 5
    assert found[0] != found[1]


def test_the_gradient_is_that_of_the_next_step(looked_at):
    """By layers alone it is a part of what the step logs over all parameters."""
    by_layer = rows(looked_at, "probes.jsonl")[1]["gradient/norm"]
    whole = {r["step"]: r["gradient_norm"] for r in rows(looked_at, "metrics.jsonl")}
    assert 0 < np.linalg.norm(by_layer) < 3 * whole[8]


def test_a_finished_run_can_be_inspected(looked_at, small_config):
    """At a step that was looked at while training, the figures are the same."""
    found = inspect_run(looked_at, ["stream", "gradient"], step=8)
    during = rows(looked_at, "probes.jsonl")[1]
    for name in ("stream/variance", "gradient/norm", "gradient/stream"):
        np.testing.assert_allclose(found[0][name], during[name], rtol=1e-5)
    inspect_run(looked_at, ["kurtosis"], step=8)
    recorded = rows(looked_at, "inspect.jsonl")
    assert [row["step"] for row in recorded] == [8]
    assert {"stream/norm", "kurtosis/excess"} <= recorded[0].keys()
    text = table(recorded[0])
    assert "step 8" in text
    assert "end" in text


@pytest.mark.slow
def test_every_probe_that_a_run_can_answer(looked_at):
    found = inspect_run(looked_at)
    assert [row["step"] for row in found] == [4, 8, 12]
    probes = {name.split("/")[0] for name in found[0]}
    assert {"logit_lens", "layer_removal", "angular_distance"} <= probes
    assert not {"depth_weights", "expert_load"} & probes


@pytest.mark.parametrize(
    "names, words",
    [
        (("depth_weights",), "one stream"),
        (("stream", "stream"), "named twice"),
        (("strem",), "'stream'"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    names, words, tmp_path, small_config
):
    config = small_config(probes__every=4, probes__names=names)
    with pytest.raises(ReslabError, match=words):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_such_step(looked_at):
    with pytest.raises(ReslabError, match="no checkpoint of step 7"):
        inspect_run(looked_at, ["stream"], step=7)


def test_the_record_says_what_the_model_costs(looked_at):
    record = Run(looked_at).record()
    assert record["parameters"] > 0
    assert record["training_flops_per_token"] > 6 * record["parameters"] / 2
