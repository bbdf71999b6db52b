"""Probes of stacks and blocks that reslab does not know."""

import importlib.util
import pathlib

import numpy as np
import pytest

from reslab.core import config as configs
from reslab.core import registry
from reslab.observe.watch import CannotAnswer
from reslab.train.loop import prepare
from reslab.train.probe import Prober

_SPEC = importlib.util.spec_from_file_location(
    "outside_parts", pathlib.Path(__file__).parents[2] / "outside" / "parts.py"
)
parts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(parts)


@pytest.mark.conformance
@pytest.mark.parametrize("residual", ["plain", "hyper(streams=2)"])
def test_the_end_is_what_a_halting_stack_returns(view_of, small_model, residual):
    model, params, tokens = small_model(stack=parts.Ponder, residual=residual)
    view = view_of(model, params, tokens)
    wanted = model.apply({"params": params}, tokens)
    np.testing.assert_allclose(view.logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.conformance
def test_a_block_around_a_block_is_one_layer(view_of, small_model):
    class Around(parts.MixtureOfDepths):
        capacity: float = 1.0

    model, params, tokens = small_model(block=("standard", Around), depth=2)
    trace = view_of(model, params, tokens).trace
    assert trace.layers == 2 and trace.readings.shape[0] == 4


@pytest.mark.conformance
def test_sublayers_of_other_lengths_are_told_in_one_line(view_of, small_model):
    blocks = ("standard", parts.MixtureOfDepths)
    model, params, tokens = small_model(block=blocks, depth=2)
    view = view_of(model, params, tokens)
    with pytest.raises(CannotAnswer, match="values of one shape") as error:
        registry.make("probes", "stream")(view)
    assert "\n" not in str(error.value).partition("\n---")[0]


@pytest.mark.conformance
def test_a_run_leaves_out_the_probes_that_cannot_answer(tmp_path, capsys):
    config = configs.load("tiny")
    for field, value in {
        "model.features": 8,
        "model.depth": 2,
        "model.mixer": "attention(heads=1)",
        "data.length": 16,
        "data.batch": 8,
        "data.source": "synthetic(documents=60)",
        "probes.names": ("stream", "expert_load", "update"),
    }.items():
        configs.update(config, [(field, value)])
    setup = prepare(config)
    with pytest.raises(CannotAnswer, match="probe 'expert_load': this model has no"):
        Prober(setup)
    prober = Prober(setup, is_lenient=True)
    assert [*prober._probes] == ["stream", "update"]
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("warning: probe 'expert_load'")
