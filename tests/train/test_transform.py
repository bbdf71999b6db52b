"""A trained run, converted twice: evaluated, sampled from, and trained on."""

import json
import shutil

import jax
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.data.corpus import load_corpus
from reslab.observe.writers.jsonl import read
from reslab.parallel.mesh import make_mesh
from reslab.train import transform
from reslab.train.checkpoint import Checkpoints
from reslab.train.evaluate import Evaluator
from reslab.train.generate import generate
from reslab.train.loop import train
from reslab.train.run import Run
from reslab.train.state import make_setup, restore_variables
from reslab.train.transform import transform_run

# Few steps, but so large that gains and biases of norms cannot go unnoticed.
CHANGES = {
    "model.norm": "layer",
    "model.depth": 1,
    "train.steps": 4,
    "optim.learning_rate": 0.03,
    "optim.schedule": "constant",
    "train.log_every": 1,
}


@pytest.fixture(scope="module")
def source(small_config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "layer"
    train(small_config(**CHANGES), directory)
    return directory


@pytest.fixture(scope="module")
def converted(source):
    rms, crms = source.with_name("rms"), source.with_name("crms")
    return {
        rms: transform_run("pre_ln_to_pre_rms", source, rms),
        crms: transform_run("pre_rms_to_pre_crms", rms, crms),
    }


def restored(directory):
    run = Run(directory)
    config = run.config()
    corpus = load_corpus(config.data.source, config.data.tokenizer)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    setup = make_setup(config, mesh)
    with Checkpoints(run.checkpoints, is_read_only=True) as checkpoints:
        variables = restore_variables(checkpoints, setup)
    return setup, corpus, variables


def figures(directory):
    """What `reslab eval` and a greedy `reslab generate` come to."""
    setup, corpus, variables = restored(directory)
    evaluator = Evaluator(setup)
    text = generate(setup.model, variables, [[corpus.tokenizer.bos]], 6, temperature=0)
    return evaluator(variables, 2), np.asarray(text)


@pytest.mark.conformance
def test_says_how_far_the_logits_are_apart(converted):
    for result in converted.values():
        assert result.logit_difference < 1e-5
        assert result.largest_logit > 0.1
        assert result.tokens > 0


@pytest.mark.conformance
def test_evaluates_and_generates_the_same(source, converted):
    _, _, variables = restored(source)
    biases = variables["params"]["final_norm"]["bias"]
    assert np.max(np.abs(biases)) > 0.01  # Training has moved what is converted.
    wanted, text = figures(source)
    for directory in converted:
        found, same_text = figures(directory)
        assert abs(found["eval_loss"] - wanted["eval_loss"]) < 1e-5
        np.testing.assert_array_equal(same_text, text)


def test_the_new_run_says_where_it_comes_from(source, converted):
    directory = next(iter(converted))
    record = json.loads((directory / "transform.json").read_text())
    assert record["transform"] == "pre_ln_to_pre_rms"
    assert record["source"] == {
        "run": str(source),
        "config_sha256": Run(source).record()["config_sha256"],
        "step": CHANGES["train.steps"],
    }
    config = Run(directory).config()
    assert config.model.norm == "rms"
    assert config.model.use_head_bias
    assert record["changes"]["model.norm"] == "rms"
    assert not list(directory.parent.glob(".partial*"))


def losses(directory):
    return {r["step"]: r["loss"] for r in read(directory / "metrics.jsonl")}


@pytest.fixture(scope="module")
def trained_on(converted):
    copies = []
    for directory in converted:
        copies.append(directory.with_name(f"{directory.name}-on"))
        shutil.copytree(directory, copies[-1])
        train(Run(copies[-1]).config(), copies[-1])
    return copies


@pytest.mark.conformance
@pytest.mark.parametrize(
    "to",
    [
        "hyper(streams=2)",
        pytest.param("denseformer", marks=pytest.mark.exhaustive),
        pytest.param("ddl(blend=0.0)", marks=pytest.mark.exhaustive),
        "delta_attnres(gate='alpha')",
    ],
)
def test_another_residual_takes_over_and_trains_on(source, tmp_path, to):
    out = tmp_path / "out"
    result = transform_run(f"change_residual(to={to!r})", source, out)
    assert result.logit_difference < 1e-3 * result.largest_logit
    assert result.changes == {"model.residual": to}
    train(Run(out).config(), out)
    curve = losses(out)
    # It begins with the batch with which the source did, and then learns.
    assert curve[1] < losses(source)[1] - 0.3
    assert curve[4] < curve[1]


@pytest.mark.slow
def test_trains_on_from_the_converted_parameters(source, trained_on):
    curves = [losses(directory) for directory in trained_on]
    assert [sorted(curve) for curve in curves] == [[1, 2, 3, 4]] * 2
    # The batch with which the source began, now seen by what came of it.
    assert abs(curves[0][1] - curves[1][1]) < 1e-5
    assert curves[0][1] < losses(source)[1] - 0.3


@pytest.mark.slow
def test_refuses_a_run_that_was_trained_with_rms(trained_on, tmp_path):
    with pytest.raises(ReslabError, match="the stream has a mean"):
        transform_run("pre_rms_to_pre_crms", trained_on[0], tmp_path / "crms")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pre_rms_to_pre_crms", "model.norm: expected rms; got 'layer'"),
        ("pre_ln_to_rms", "unknown transforms 'pre_ln_to_rms'"),
    ],
)
def test_refuses_the_wrong_transform(source, tmp_path, name, message):
    with pytest.raises(ReslabError, match=message) as error:
        transform_run(name, source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_refuses_a_directory_that_is_taken(source, tmp_path):
    (tmp_path / "notes").touch()
    with pytest.raises(ReslabError, match="expected a new directory"):
        transform_run("pre_ln_to_pre_rms", source, tmp_path)


def test_leaves_nothing_when_writing_fails(source, tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError("the disk is full")

    monkeypatch.setattr(transform.Checkpoints, "save", fail)
    with pytest.raises(ReslabError, match="the disk is full"):
        transform_run("pre_ln_to_pre_rms", source, tmp_path / "out")
    assert not list(tmp_path.iterdir())
