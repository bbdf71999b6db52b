"""Problems with known answers: what is graded, and what a run of one reports."""

import json

import jax
import numpy as np
import pytest

from reslab.cli import main
from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.parallel.mesh import make_mesh, use_mesh
from reslab.train import loop
from reslab.train.evaluate import Evaluator
from reslab.train.state import make_setup
from reslab.train.tasks import make_task

RECALL = "recall(pairs=2, keys=4)"


@pytest.fixture
def graded(brief_config):
    """The brief config on a problem."""

    def build(**changes):
        fields = {
            "train__task": "graded",
            "data__source": RECALL,
            "data__length": 8,
            "eval__batch": 64,
            "eval__batches": 2,
            "mesh__cpu_devices": 1,
        }
        return brief_config(**fields | changes)

    return build


@pytest.mark.conformance
def test_a_run_reports_errors(graded, tmp_path, capsys):
    source = "hops(nodes=4, hops=2, queries=4)"
    config = graded(data__source=source, data__length=12)
    result = loop.train(config, tmp_path / "run")
    names = ("eval_error", "eval_error_hop_1", "eval_error_hop_2", "eval_sample_error")
    assert all(0 <= result[name] <= 1 for name in names)
    assert "eval_bpb" not in result
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["headline"]["metric"] == "error"
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "held-out error at equal tokens" in capsys.readouterr().out
    # There is no text in it.
    assert main(["generate", str(tmp_path / "run"), "--prompt", "a"]) == 2
    assert "expected a language model" in capsys.readouterr().err


def test_only_graded_answers_count(graded):
    task = make_task(graded())
    batch = {k: v.copy() for k, v in next(task.validation_batches(8)).items()}

    class Certain:
        """Answers token 4 with certainty."""

        def apply(self, variables, tokens, **options):
            return 50.0 * jax.nn.one_hot(np.full(tokens.shape, 4), 8), {}

    total, sums, _ = task.loss_sums(Certain(), {}, batch)
    answers = batch["targets"][batch["loss_mask"]]
    assert int(sums["tokens"]) == len(answers) == 16
    assert int(sums["wrong"]) == np.sum(answers != 4)
    np.testing.assert_allclose(total, 50.0 * np.sum(answers != 4), rtol=1e-6)
    found = task.metrics(sums)
    np.testing.assert_allclose(found["error"], np.mean(answers != 4), rtol=1e-6)
    # Targets elsewhere change nothing.
    batch["targets"][~batch["loss_mask"]] = 7
    assert float(task.loss_sums(Certain(), {}, batch)[0]) == float(total)


def test_kinds_are_graded_apart(graded):
    task = make_task(graded(data__source="tracking(group='parity')"))
    batch = next(task.validation_batches(16))

    class Zero:
        """Answers 0 everywhere."""

        def apply(self, variables, tokens, **options):
            return jax.nn.one_hot(np.zeros(tokens.shape, int), 2), {}

    sums = task.loss_sums(Zero(), {}, batch)[1]
    found = task.metrics({name: float(value) for name, value in sums.items()})
    # Batches of training have too few of a kind.
    assert set(task.metrics(sums)) == {"loss", "error"}
    for number, kind in enumerate(("first", "second", "third", "fourth")):
        wanted = np.mean(batch["targets"][:, 2 * number : 2 * number + 2] == 1)
        np.testing.assert_allclose(found[f"error_{kind}"], wanted, rtol=1e-6)


def test_held_out_examples_may_be_longer(graded):
    config = graded(data__source="tracking", eval__length=32)
    task = make_task(config)
    assert next(task.validation_batches(4))["tokens"].shape == (4, 32)
    assert next(task.train_batches())["tokens"].shape[1] == 8
    assert task.model_fields()["max_length"] == 32


def test_held_out_windows_of_text_may_be_longer(brief_config):
    task = make_task(brief_config(eval__length=64))
    assert next(task.validation_batches(2))["tokens"].shape == (2, 64)
    assert task.model_fields()["max_length"] == 64


def test_all_runs_are_graded_on_the_same_examples(graded):
    digests = {make_task(graded(seed=seed)).record()["sha256"] for seed in (0, 1)}
    assert len(digests) == 1
    other = make_task(graded(data__source="recall(pairs=2, keys=5)")).record()
    assert other["sha256"] not in digests


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"data__length": 5}, "at least 6 tokens; got 5"),
        ({"eval__length": 5}, "at least 6 tokens; got 5"),
        ({"data__source": "recal"}, "problems.*'recal'.*recall"),
        ({"data__source": "stdlib"}, "problems"),
        ({"data__source": "recall(pairs=9, keys=4)"}, "at most 4, the keys; got 9"),
        ({"model__name": "resnet"}, "."),
    ],
    ids=str,
)
def test_mistakes_are_one_line(graded, fields, words, tmp_path):
    with pytest.raises(ReslabError, match=words):
        loop.train(graded(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_problem_is_no_text(brief_config):
    with pytest.raises(ReslabError, match="sources"):
        configs.check(brief_config(data__source=RECALL))


@pytest.mark.conformance
def test_more_devices_grade_alike(graded):
    errors = []
    for count in (1, 4):
        mesh = make_mesh({"data": count}, jax.devices()[:count])
        setup = make_setup(graded(mesh__cpu_devices=8), mesh)
        with use_mesh(mesh):
            state = setup.init()
        errors.append(Evaluator(setup)(state.variables)["eval_loss"])
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-6)
