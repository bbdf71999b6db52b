"""Runs of stacks that draw, halt or share: stopped and resumed, bit for bit."""

import os
import signal

import jax
import numpy as np
import pytest

from reslab.core.trees import named_leaves
from reslab.train import loop
from reslab.train.checkpoint import Checkpoints
from reslab.train.run import Run

STACKS = {
    "act": {"model__stack": "act(loops=2)"},
    "ponder": {"model__stack": "ponder(loops=2)"},
    "newton": {"model__stack": "newton(weight=0.1)", "model__depth": 3},
    "cart": {"model__stack": "cart(loops=2)", "model__depth": 3},
    "recursive": {"model__stack": "recursive(lora_rank=1)", "model__depth": 2},
    "huginn": {"model__stack": "huginn(loops=2, backward_loops=2)", "model__depth": 3},
}


def parameters(directory):
    run = Run(directory)
    setup = loop.prepare(run.config())
    with Checkpoints(run.checkpoints, is_read_only=True) as checkpoints:
        restored = checkpoints.restore(setup.shapes)
    assert restored.step == 4
    leaves = named_leaves(restored.state)
    return {name: np.asarray(leaf).tobytes() for name, leaf in leaves.items()}


@pytest.mark.conformance
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "huginn" else pytest.mark.exhaustive)
        for name in STACKS
    ],
)
def test_a_resumed_run_is_the_same_run(name, tmp_path, brief_config, monkeypatch):
    config = brief_config(**STACKS[name])
    loop.train(config, tmp_path / "whole")
    block, count = jax.block_until_ready, iter(range(10**9))

    def interrupt(x):
        if next(count) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return block(x)

    with monkeypatch.context() as patch:
        patch.setattr(loop.jax, "block_until_ready", interrupt)
        with pytest.raises(loop.Stopped):
            loop.train(config, tmp_path / "again")
    loop.train(config, tmp_path / "again")
    assert parameters(tmp_path / "again") == parameters(tmp_path / "whole")
