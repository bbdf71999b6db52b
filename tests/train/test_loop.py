import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves
from reslab.data.batches import TrainBatches
from reslab.data.corpus import load_corpus
from reslab.data.windows import WindowSource
from reslab.parallel.mesh import make_mesh, place_on, use_mesh
from reslab.train import loop
from reslab.train.opening import opening
from reslab.train.state import make_setup
from reslab.train.step import make_step

# Trains the config in argv[1] into the directory argv[2]. Where argv[3] is given,
# the process kills itself there: "step:N" after dispatching step N, "save:N" while
# the checkpoint of step N is being written in the background.
CHILD = """
import os, pathlib, signal, sys
from reslab.core import config as configs
from reslab.train import loop
from reslab.train.checkpoint import Checkpoints

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

kind, _, at = (sys.argv[3] if len(sys.argv) > 3 else ":").partition(":")
if kind == "save":
    save = Checkpoints.save
    def save_and_die(self, step, *args, **kwargs):
        done = save(self, step, *args, **kwargs)
        if step == int(at):
            assert not (pathlib.Path(sys.argv[2]) / "checkpoints" / at).exists()
            die()
        return done
    Checkpoints.save = save_and_die
if kind == "step":
    block = loop.jax.block_until_ready
    count = iter(range(10**9))
    def block_and_die(x):
        if next(count) == int(at):
            die()
        return block(x)
    loop.jax.block_until_ready = block_and_die
config = configs.from_json(pathlib.Path(sys.argv[1]).read_text(), "config")
loop.train(config, sys.argv[2])
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One compile cache for all children."""
    return tmp_path_factory.mktemp("jax_cache")


@pytest.fixture
def child(tmp_path, cache, small_config):
    """Runs training in a process of its own."""
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def run(directory, *kill, **changes):
        path = tmp_path / "asked.json"
        path.write_text(configs.canonical_json(small_config(**changes)))
        command = [sys.executable, "-c", CHILD, str(path), str(directory), *kill]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )

    return run


def parameters(directory):
    """The final checkpoint's parameters, as bytes."""
    from reslab.train.checkpoint import Checkpoints
    from reslab.train.run import Run

    run = Run(directory)
    setup = loop.prepare(run.config())
    with Checkpoints(run.checkpoints, is_read_only=True) as checkpoints:
        restored = checkpoints.restore(setup.shapes)
    return restored.step, {
        name: np.asarray(leaf).tobytes()
        for name, leaf in named_leaves(restored.state).items()
    }


def metrics(directory):
    """What was logged, without the clock."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    clocks = ("elapsed_seconds", "tokens_per_second", "step_seconds")
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows]


@pytest.mark.exhaustive  # The drill kills runs too, but does not look into them.
def test_killed_three_times_ends_bit_identical(tmp_path, child):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    looking = {"probes__every": 4, "probes__names": ("gradient",)}
    done = child(whole, **looking)
    assert done.returncode == 0, done.stderr
    for kill in ("step:2", "save:4", "step:5"):
        died = child(broken, kill, **looking)
        assert died.returncode == -signal.SIGKILL, died.stderr
    done = child(broken, **looking)
    assert done.returncode == 0, done.stderr
    assert parameters(whole) == parameters(broken)
    assert metrics(whole) == metrics(broken)
    looks = (whole / "probes.jsonl").read_text()
    assert [json.loads(line)["step"] for line in looks.splitlines()] == [0, 4, 8, 12]
    assert looks == (broken / "probes.jsonl").read_text()


@pytest.mark.conformance  # The drill stops runs in every test run.
def test_sigterm_saves_and_the_same_call_goes_on(tmp_path, small_config, monkeypatch):
    # Random numbers are those of the step, whoever computes it.
    config = small_config(
        model__residual="stochastic_depth(rate=0.5)",
        model__dropout=0.1,
        model__embedding_dropout=0.1,
        model__mixer="attention(heads=2, attention_dropout=0.1)",
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    loop.train(config, whole)
    block, count = jax.block_until_ready, iter(range(10**9))

    def interrupt(x):
        if next(count) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return block(x)

    with monkeypatch.context() as patch:
        patch.setattr(loop.jax, "block_until_ready", interrupt)
        with pytest.raises(loop.Stopped) as stopped:
            loop.train(config, broken)
    assert stopped.value.step == 6
    loop.train(config, broken)
    assert parameters(whole) == parameters(broken)


def test_result_and_record(tmp_path, small_config):
    result = loop.train(small_config(), tmp_path / "run")
    assert result["step"] == 12
    assert 0 < result["eval_bpb"] < 8.1
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config_sha256"] == configs.sha256(small_config())
    assert record["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert record["corpus"]["sha256"]
    assert record["environment"]["versions"]["jax"] == jax.__version__
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 4, 8, 12]
    assert {"loss", "bpb", "learning_rate", "gradient_norm"} <= rows[0].keys()
    assert "eval_bpb" in rows[2]


def losses(config, mesh, steps=12):
    """The loss of each of the first steps on a mesh."""
    corpus = load_corpus(config.data.source, config.data.tokenizer)
    setup = make_setup(config, mesh)
    step = jax.jit(make_step(setup))
    place, state, values = place_on(mesh), setup.init(), []
    data = config.data
    with (
        TrainBatches(WindowSource(corpus.train, data.length), data.batch, 0) as batches,
        use_mesh(mesh),
    ):
        for _ in range(steps):
            state, row = step(state, place(next(batches)))
            values.append(float(row["loss"]))
    return values


@pytest.fixture(scope="module")
def one_device_losses(small_config):
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return losses(small_config(), mesh)


@pytest.mark.conformance
@pytest.mark.parametrize(
    "shape",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2},
        *(
            pytest.param(shape, marks=pytest.mark.conformance)
            for shape in (
                {"data": 1, "fsdp": 8, "tensor": 1},
                {"data": 4, "fsdp": 1, "tensor": 2},
            )
        ),
    ],
    ids=lambda shape: "x".join(map(str, shape.values())),
)
def test_losses_do_not_depend_on_the_mesh(shape, small_config, one_device_losses):
    found = losses(small_config(), make_mesh(shape))
    np.testing.assert_allclose(found, one_device_losses, rtol=1e-5)


@pytest.mark.conformance
@pytest.mark.parametrize("capacity", [0.0, 1.25])
def test_losses_do_not_depend_on_where_experts_are(small_config, capacity):
    ffn = f"experts(experts=4, hidden=32, capacity={capacity})"
    config = small_config(model__ffn=ffn, model__depth=2)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    alone = losses(config, mesh, steps=6)
    found = losses(config, make_mesh({"data": 2, "expert": 4}), steps=6)
    np.testing.assert_allclose(found, alone, rtol=1e-5)


@pytest.mark.conformance
def test_accumulation_changes_nothing_but_memory(small_config, one_device_losses):
    mesh = make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    found = losses(small_config(train__accumulate=4), mesh)
    np.testing.assert_allclose(found, one_device_losses, rtol=1e-5)


def test_parameters_and_optimizer_state_are_sharded(small_config):
    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    setup = make_setup(small_config(), mesh)
    for name, leaf in named_leaves(setup.shapes).items():
        if leaf.ndim:
            shard = np.prod(leaf.sharding.shard_shape(leaf.shape))
            assert shard * 8 == leaf.size, name


@pytest.mark.conformance
def test_frozen_parameters_stay_bitwise_equal(small_config):
    config = small_config(
        optim__groups=(("embedding$", {"freeze": True}), ("mixer", {"lr_scale": 0.5}))
    )
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    corpus = load_corpus(config.data.source, config.data.tokenizer)
    setup = make_setup(config, mesh)
    before = jax.device_get(setup.init())
    batch = next(TrainBatches(WindowSource(corpus.train, 16), 8, 0))
    with use_mesh(mesh):
        step = jax.jit(make_step(setup))
        after, _ = step(setup.init(), place_on(mesh)(batch))
    for name, old in named_leaves(before.params).items():
        is_same = np.array_equal(old, named_leaves(after.params)[name])
        assert is_same == (name == "embedding"), name


@pytest.mark.conformance
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, small_config):
    config = small_config(
        optim__learning_rate=1e30, optim__clip=0.0, optim__name="sgd(momentum=0.0)"
    )
    with pytest.raises(loop.Diverged, match=r"step \d+: \w+ is not finite"):
        loop.train(config, tmp_path / "run")


def test_tokens_must_divide_the_sequence_axis(tmp_path, small_config):
    config = small_config(mesh__data=1, mesh__sequence=8, data__length=20)
    with pytest.raises(ReslabError, match=r"data.length: .* multiple of mesh.seq.*=8"):
        loop.train(config, tmp_path / "run")


def test_batch_must_divide_the_devices(tmp_path, small_config):
    with pytest.raises(ReslabError, match=r"data.batch: expected a multiple of the 8"):
        loop.train(small_config(data__batch=12), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("parameters", ["float32", "bfloat16"])
def test_the_opening_tells_of_updates_that_are_lost(brief_config, parameters):
    setup = loop.prepare(brief_config(precision__parameters=parameters))
    lines = opening(setup, {}, pathlib.Path("run"), 0)
    told = [line for line in lines if line.startswith("precision")]
    assert len(told) == (parameters == "bfloat16")
    for line in told:
        assert "below about 1/256 of a bfloat16 parameter are rounded away" in line
