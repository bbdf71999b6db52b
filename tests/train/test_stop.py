"""A run that is asked to stop while it evaluates saves, and goes on exactly."""

import json
import os
import signal

import pytest

from reslab.train import loop
from reslab.train.evaluate import Evaluator
from reslab.train.run import Run

SMALL = {
    "model__depth": 1,
    "model__features": 16,
    "mesh__cpu_devices": 8,
    "train__eval_every": 4,
    "train__log_every": 3,
    "train__checkpoint_every": 5,
    "train__log_layers": True,
    "eval__batches": 3,
}
CLOCKS = ("elapsed_seconds", "tokens_per_second", "step_seconds")


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def files(run):
    names = ("layers.jsonl", "probes.jsonl")
    return [rows(run), *((run / name).read_bytes() for name in names)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_config):
    run = tmp_path_factory.mktemp("whole") / "run"
    loop.train(small_config(**SMALL), run)
    return run


@pytest.fixture
def asking(monkeypatch):
    """Asks to stop in the given batches of evaluations; counts all of them."""

    def plant(*batches):
        seen, init = [], Evaluator.__init__

        def counted(self, setup, *others):
            init(self, setup, *others)
            sums = self._sums

            def one(variables, batch):
                seen.append(batch)
                if len(seen) in batches:
                    os.kill(os.getpid(), signal.SIGTERM)
                return sums(variables, batch)

            self._sums = one

        monkeypatch.setattr(Evaluator, "__init__", counted)
        return seen

    return plant


# Evaluations at steps 4 and 8 are of three batches each; that at step 12 is of all.
@pytest.mark.conformance
@pytest.mark.parametrize(
    ("batch", "step"),
    [(1, 4), (5, 8), pytest.param(6, 8, marks=pytest.mark.exhaustive), (8, 12)],
)
def test_an_evaluation_is_stopped_and_made_again(
    batch, step, whole, asking, tmp_path, small_config
):
    config, run = small_config(**SMALL), tmp_path / "run"
    seen = asking(batch)
    with pytest.raises(loop.Stopped, match=f"saved at step {step}"):
        loop.train(config, run)
    assert len(seen) == batch
    assert not (run / "result.json").exists()
    assert [row["step"] for row in rows(run)] == [
        row["step"] for row in rows(whole) if row["step"] < step
    ]
    asking()
    result = loop.train(config, run)
    assert files(run) == files(whole)
    unbroken = Run(whole).result()
    for clock in CLOCKS:
        unbroken.pop(clock, None)
        result.pop(clock, None)
    assert result == unbroken


@pytest.mark.conformance
def test_a_run_that_was_stopped_in_its_last_evaluation_is_killed_in_the_next(
    whole, asking, tmp_path, small_config
):
    config, run = small_config(**SMALL), tmp_path / "run"
    asking(8)
    with pytest.raises(loop.Stopped):
        loop.train(config, run)
    before = files(run)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        patch.setattr(Evaluator, "__call__", interrupt)
        loop.train(config, run)
    assert files(run)[0] == before[0]
    loop.train(config, run)
    assert files(run) == files(whole)
