"""A forecaster through the same step, loop and checkpoints as a language."""

import jax
import numpy as np
import pytest

from reslab.core import config as configs
from reslab.train import loop
from reslab.train.tasks import make_task

SMALL = {
    "model.features": 8,
    "model.depth": 1,
    "model.mixer": "attention(heads=2)",
    "model.name": "forecaster(horizon=4)",
    "data.source": "waves(steps=200, variates=3)",
    "data.length": 12,
    "data.batch": 8,
    "optim.schedule": "constant(warmup=0)",
    "train.steps": 2,
    "train.eval_every": 2,
    "precision.compute": "float32",
}


def small(**changes):
    return configs.update(configs.load("waves"), (SMALL | changes).items())


def test_loss_is_the_mean_squared_error():
    task = make_task(small())
    batch = next(iter(task.validation_batches(5)))
    assert batch["history"].shape == (5, 12, 3) and batch["target"].shape == (5, 4, 3)

    class Same:
        def apply(self, variables, history, **options):
            return np.repeat(history[:, -1:], 4, axis=1), {}

    total, sums, _ = task.loss_sums(Same(), {}, batch)
    error = batch["history"][:, -1:] - batch["target"]
    np.testing.assert_allclose(total, np.sum(np.mean(error**2, axis=(1, 2))), rtol=1e-5)
    found = task.metrics(sums)
    np.testing.assert_allclose(found["loss"], np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(found["mae"], np.mean(np.abs(error)), rtol=1e-5)


def test_shapes_are_those_of_batches():
    task = make_task(small())
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), task.batch_shapes(5))
    batch = next(iter(task.validation_batches(5)))
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), batch)


@pytest.mark.conformance
def test_trains_and_evaluates(tmp_path):
    result = loop.train(small(), tmp_path / "run")
    assert result["step"] == 2
    assert result["eval_windows"] == 37
    assert np.isfinite(result["eval_loss"]) and np.isfinite(result["eval_mae"])
