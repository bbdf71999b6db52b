"""A run meets steps that are not finite, and spikes, and ends well."""

import json

import jax
import numpy as np
import pytest

from reslab.data.batches import TrainBatches
from reslab.parallel.mesh import make_mesh
from reslab.train import loop


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the losses of some batches NaN, or their gradients huge."""
    given = []

    def poison(batches):
        plain = TrainBatches.__next__

        def one(self):
            number = self.state // 8
            batch = plain(self)
            mask = batch["loss_mask"].astype(np.float32)
            kind = batches.get(number)
            if kind == "nan":
                mask[:] = np.nan
            elif kind == "spike":  # Adds up to what it did, and weighs little else.
                mask[0, :8] = 1e5 * (-1.0) ** np.arange(8)
            given.append(number)
            return batch | {"loss_mask": mask}

        monkeypatch.setattr(TrainBatches, "__next__", one)
        return given

    return poison


def rows(directory):
    text = (directory / "metrics.jsonl").read_text()
    return {row["step"]: row for row in map(json.loads, text.splitlines())}


# One window, so that the step of all policies is the same program.
QUIET = {
    **{"train__eval_every": 100, "train__log_every": 1, "train__steps": 24},
    **{"model__depth": 1, "model__features": 16, "train__checkpoint_every": 4},
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(
        loop, "make_mesh", lambda shape: make_mesh(shape, jax.devices()[:1])
    )


@pytest.mark.conformance
def test_halt_names_the_step_and_the_leaf(tmp_path, small_config, poisoned):
    poisoned({5: "nan"})
    config = small_config(**QUIET)
    with pytest.raises(loop.Diverged, match=r"step 6: loss is not .*gradient of \w+"):
        loop.train(config, tmp_path / "run")
    assert max(rows(tmp_path / "run")) == 5
    kept = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"begun", "4"}


def test_skip_goes_on_without_the_step(tmp_path, small_config, poisoned):
    poisoned({5: "nan", 22: "spike"})
    config = small_config(train__on_bad_step="skip(window=16)", **QUIET)
    result = loop.train(config, tmp_path / "run")
    found = rows(tmp_path / "run")
    assert [found[step]["skipped_steps"] for step in (5, 6, 22, 23, 24)] == [
        *(0, 1, 1, 2, 2)
    ]
    assert found[6]["loss"] is None
    assert np.isfinite(result["eval_loss"])
    assert "health" not in found[6]


def test_skip_gives_up_in_the_end(tmp_path, small_config, poisoned):
    poisoned({5: "nan", 6: "nan", 7: "nan"})
    config = small_config(train__on_bad_step="skip(window=16, limit=3)", **QUIET)
    with pytest.raises(loop.Diverged, match="step 8: 3 bad steps in a row"):
        loop.train(config, tmp_path / "run")


@pytest.mark.conformance
def test_rollback_goes_on_past_the_batch(tmp_path, small_config, poisoned, capsys):
    given = poisoned({5: "nan", 2: "nan"})
    config = small_config(train__on_bad_step="rollback(window=16)", **QUIET)
    result = loop.train(config, tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    told = [line.partition(";")[2] for line in lines if "back to" in line]
    # Batch 2 is met before there is a checkpoint; then step 3 has batch 5.
    assert told == [" back to step 0, past the batch of that step"] * 2
    assert result["step"] == 24 == max(rows(tmp_path / "run"))
    assert sorted(set(given))[:7] == [*range(7)]
    run = loop.Run(tmp_path / "run")
    setup = loop.prepare(config)
    with loop.Checkpoints(run.checkpoints, is_read_only=True) as checkpoints:
        restored = checkpoints.restore(setup.shapes)
    assert restored.data_index == (24 + 6) * 8
    assert int(restored.state.opt_state.rollbacks) == 2
    assert jax.tree.all(
        jax.tree.map(lambda x: bool(np.isfinite(x).all()), restored.state.params)
    )


@pytest.mark.conformance
def test_rollback_gives_up_in_the_end(tmp_path, small_config, poisoned):
    poisoned(dict.fromkeys(range(40), "nan"))
    config = small_config(train__on_bad_step="rollback(window=16, limit=2)", **QUIET)
    with pytest.raises(loop.Diverged, match="again after 2 rollbacks"):
        loop.train(config, tmp_path / "run")


def test_debugging_stops_where_the_nan_is_made(tmp_path, small_config, poisoned):
    poisoned({0: "nan"})
    jax.config.update("jax_debug_nans", True)
    try:
        with pytest.raises(FloatingPointError, match="reduce_sum"):
            loop.train(small_config(**QUIET), tmp_path / "run")
    finally:
        jax.config.update("jax_debug_nans", False)
