"""Looking inside a run changes nothing about it, and can be done afterwards."""

import json
import shutil

import grain
import jax
import numpy as np
import pytest

from reslab.core.depth import sum_by_layer
from reslab.core.errors import ReslabError
from reslab.data.batches import TrainBatches
from reslab.data.corpus import load_corpus
from reslab.data.windows import WindowSource
from reslab.observe.probes.gradient import sum_of_squares
from reslab.observe.writers import jsonl
from reslab.parallel.mesh import make_mesh, place_on
from reslab.train import loop
from reslab.train.checkpoint import Checkpoints
from reslab.train.probe import Prober, inspect_run, table
from reslab.train.run import Run
from reslab.train.state import make_setup
from reslab.train.step import jit_step

LOOKING = {"probes__every": 8, "probes__names": ("stream", "gradient", "update")}


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory, small_config):
    """A run that was looked at while it trained."""
    directory = tmp_path_factory.mktemp("looked_at") / "run"
    loop.train(small_config(**LOOKING), directory)
    return directory


def rows(directory, name):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


@pytest.mark.conformance
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
        setup = loop.prepare(config)
        trainer = loop._Trainer(setup, *[None] * 9, jit_step(setup))
        batch = jax.eval_shape(
            lambda: {
                key: jax.numpy.zeros((8, 16), dtype)
                for key, dtype in {
                    "tokens": "int32",
                    "targets": "int32",
                    "positions": "int32",
                    "segment_ids": "int32",
                    "loss_mask": "bool",
                    "sizes": "int32",
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


@pytest.mark.conformance
@pytest.mark.parametrize(
    "accumulate", [pytest.param(1, marks=pytest.mark.exhaustive), 4]
)
def test_the_gradient_is_that_of_the_next_step(tmp_path, small_config, accumulate):
    """Where all but the layers is frozen out of the norm, it is what is logged."""
    frozen = (("embedding|head|final_norm", {"freeze": True}), (".", {}))
    config = small_config(
        **LOOKING,
        optim__groups=frozen,
        train__log_every=1,
        train__steps=10,
        train__accumulate=accumulate,
        data__batch=32,
    )
    loop.train(config, tmp_path / "run")
    look = rows(tmp_path / "run", "probes.jsonl")[1]
    logged = {
        r["step"]: r["gradient_norm"] for r in rows(tmp_path / "run", "metrics.jsonl")
    }
    by_layer = np.linalg.norm(look["gradient/norm"])
    np.testing.assert_allclose(by_layer, logged[9], rtol=1e-4)
    # Of the next batch, exactly: that of any other step is not the same.
    setup = loop.prepare(config)
    state, batch = state_and_batch(setup, tmp_path / "run", 8)
    step = jax.jit(jax.grad(lambda p: mean_loss(setup, p, batch)))
    with loop.use_mesh(setup.mesh):
        expected = jax.jit(lambda g: jax.numpy.sqrt(sum_by_layer(sum_of_squares, g)))(
            step(state.params)
        )
    np.testing.assert_allclose(look["gradient/norm"], expected, rtol=1e-4)


def state_and_batch(setup, directory, step):
    """A checkpoint, and the batch that it trains on next."""
    with Checkpoints(directory / "checkpoints", is_read_only=True) as checkpoints:
        restored = checkpoints.restore(setup.shapes, step)
    batches = setup.task.train_batches()
    batches.state = restored.data_index
    return restored.state, place_on(setup.mesh)(next(batches))


def mean_loss(setup, params, batch):
    total, sums, _ = setup.task.loss_sums(setup.model, {"params": params}, batch)
    return total / sums["tokens"]


@pytest.mark.conformance
def test_looks_do_not_depend_on_the_mesh(small_config):
    """Parameters and sublayers spread over devices; in bfloat16 it still runs."""

    def look(shape, **changes):
        config = small_config(**{**LOOKING, **changes})
        corpus = load_corpus(config.data.source, config.data.tokenizer)
        devices = jax.devices()[: shape["data"] * shape["fsdp"] * shape["tensor"]]
        setup = make_setup(config, make_mesh(shape, devices))
        batches = TrainBatches(WindowSource(corpus.train, 16), 8, 0)
        batch = place_on(setup.mesh)(next(batches))
        return Prober(setup)(setup.init(), batch)

    alone = look({"data": 1, "fsdp": 1, "tensor": 1})
    spread = look({"data": 2, "fsdp": 2, "tensor": 2})
    for name, values in alone.items():
        np.testing.assert_allclose(spread[name], values, rtol=1e-4, err_msg=name)
    short = look({"data": 2, "fsdp": 2, "tensor": 2}, precision__compute="bfloat16")
    for name, values in alone.items():
        np.testing.assert_allclose(short[name], values, rtol=0.1, err_msg=name)


@pytest.mark.conformance
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


@pytest.mark.conformance
def test_every_probe_that_a_run_can_answer(looked_at):
    found = inspect_run(looked_at)
    assert [row["step"] for row in found] == [4, 8, 12]
    probes = {name.split("/")[0] for name in found[0]}
    assert {"logit_lens", "layer_removal", "angular_distance"} <= probes
    assert not {"depth_weights", "expert_load"} & probes


@pytest.mark.parametrize(
    "names, words",
    [
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


@pytest.mark.conformance
def test_a_probe_without_an_answer_does_not_stop_a_run(tmp_path, small_config, capsys):
    names = ("depth_weights", "stream")
    config = small_config(probes__every=4, probes__names=names, train__steps=4)
    loop.train(config, tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("warning")]
    assert "probe 'depth_weights': this residual reads from one stream" in line
    *_, record = jsonl.read(tmp_path / "run" / "probes.jsonl")
    assert {name.split("/")[0] for name in record} == {"step", "stream"}


def test_a_run_without_checkpoints(tmp_path, looked_at):
    shutil.copytree(looked_at, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(ReslabError, match="has no checkpoint"):
        inspect_run(tmp_path / "run", ["stream"])


def test_no_such_step(looked_at):
    with pytest.raises(ReslabError, match="no checkpoint of step 7"):
        inspect_run(looked_at, ["stream"], step=7)


def test_the_record_says_what_the_model_costs(looked_at):
    record = Run(looked_at).record()
    assert record["parameters"] > 0
    assert record["training_flops_per_token"] > 6 * record["parameters"] / 2


@pytest.mark.conformance
def test_inspecting_starts_no_data_worker(tmp_path, brief_config, monkeypatch):
    loop.train(brief_config(data__workers=1, train__steps=4), tmp_path / "run")
    monkeypatch.setattr(grain, "MultiprocessingOptions", None)
    assert inspect_run(tmp_path / "run", ["stream"], 4)[0]["step"] == 4
