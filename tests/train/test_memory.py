"""The least memory of a run, counted by hand; what does not fit is refused."""

import types

import jax
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import count_parameters
from reslab.parallel.mesh import make_mesh
from reslab.train import loop, memory
from reslab.train.state import make_setup


def setup_of(config):
    return make_setup(config, make_mesh({"data": -1}, jax.devices()[:4]))


def test_the_parts_of_the_estimate(small_config):
    config = small_config()
    setup = setup_of(config)
    found = memory.least_bytes(setup)
    count = count_parameters(setup.shapes.params)
    assert found["parameters"] == 4 * count
    # Two moments, and a few counters.
    assert 8 * count <= found["optimizer state"] <= 8 * count + 100
    rows, width = config.data.batch // 4, config.model.features
    stream = rows * config.data.length * width * setup.model.dtype.dtype.itemsize
    assert found["activations"] == config.model.depth * stream
    evaluated = memory.least_bytes(setup, is_training=False)
    assert evaluated["activations"] == stream * config.eval.batch // config.data.batch
    assert "optimizer state" not in evaluated


def test_running_values_of_norms_are_counted(small_config):
    setup = setup_of(small_config(model__norm="unified(window=1000000)"))
    norms = 2 * setup.config.model.depth
    window = 4 * 10**6 * setup.config.model.features
    assert memory.least_bytes(setup)["running values"] >= norms * window
    setup = setup_of(small_config(model__norm="unified(window=1000000000)"))
    with pytest.raises(ReslabError, match=r"running values.* a shorter window"):
        memory.check_memory(setup)


@pytest.mark.parametrize(
    "fields",
    [
        {"model__block": "reversible", "model__residual": "reversible"},
        {"optim__groups": (("embedding$", {"freeze": True}),)},
    ],
)
def test_what_keeps_no_input_of_every_layer(fields, small_config):
    config = small_config(**fields)
    kept = memory.least_bytes(setup_of(config))["activations"]
    usual = memory.least_bytes(setup_of(small_config()))["activations"]
    assert kept == usual // config.model.depth


def test_refused_before_anything_is_made(small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 100_000)
    with pytest.raises(ReslabError, match="an estimate of at least"):
        loop.train(small_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_probes_and_generation_are_counted(small_config, monkeypatch):
    few = memory.least_bytes(setup_of(small_config(probes__batch=10**9)))
    many = small_config(probes__batch=10**9, probes__every=4)
    assert memory.least_bytes(setup_of(many))["activations"] > 10**5 * sum(few.values())
    monkeypatch.setattr(memory, "host_bytes", lambda: 10**9)
    setup = setup_of(small_config())
    memory.check_generation(setup.model, 1, 100)
    for samples, length in ((10**5, 100), (1, 10**7)):
        with pytest.raises(ReslabError, match="fewer samples, or a smaller"):
            memory.check_generation(setup.model, samples, length)


def test_a_device_of_unknown_memory_refuses_nothing(small_config, monkeypatch):
    absent = types.SimpleNamespace(platform="tpu", memory_stats=lambda: None)
    assert memory.available_bytes(absent) is None
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    memory.check_memory(setup_of(small_config(data__batch=8 * 10**12)))


def test_the_memory_of_this_machine():
    found = memory.available_bytes(jax.devices()[0])
    assert found is not None and 2**24 < found < 2**50
