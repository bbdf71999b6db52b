"""Runs of one program: as many threads, one compiled step."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import named_leaves
from reslab.parallel.mesh import place_on, use_mesh
from reslab.study.worker import train_together
from reslab.train import loop
from reslab.train.loop import Stopped
from reslab.train.run import Run
from reslab.train.step import jit_step
from reslab.train.together import Pack, jit_steps

# The last is not an int32.
SEEDS = (0, 7, 2**32 - 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"model__dropout": 0.2},
        pytest.param(
            {"optim__name": "muon", "model__residual": "attnres"},
            marks=pytest.mark.conformance,
        ),
        pytest.param(
            {"train__accumulate": 2, "data__batch": 16, "model__norm": "batch"},
            marks=pytest.mark.conformance,
        ),
        pytest.param(
            {"optim__name": "lisa", "model__mixer": "gated_delta(heads=2)"},
            marks=pytest.mark.conformance,
        ),
    ],
    ids=str,
)
def test_steps_of_several_runs_are_those_of_each(brief_config, fields):
    setups = [
        loop.prepare(brief_config(seed=seed, mesh__cpu_devices=8, **fields))
        for seed in SEEDS
    ]
    place = place_on(setups[0].mesh)
    states = [setup.init() for setup in setups]
    batches = [setup.task.train_batches() for setup in setups]
    alone = [setup.init() for setup in setups]
    together = jit_steps(setups[0], SEEDS)
    with use_mesh(setups[0].mesh):
        each = [jit_step(setup) for setup in setups]
        for _ in range(3):
            placed = [place(next(rows)) for rows in batches]
            # Collectives of two programs at once can starve each other of threads.
            found = jax.block_until_ready(together(states, placed))
            states = [state for state, _ in found]
            for number, step in enumerate(each):
                both = jax.block_until_ready(step(alone[number], placed[number]))
                alone[number], metrics = both
                for name, value in metrics.items():
                    np.testing.assert_allclose(
                        found[number][1][name], value, rtol=1e-5, atol=1e-6
                    )
    for mine, other in zip(states, alone, strict=True):
        leaves = named_leaves(other.params)
        for name, leaf in named_leaves(mine.params).items():
            np.testing.assert_allclose(leaf, leaves[name], rtol=1e-5, atol=1e-5)


def in_threads(pack, count, body):
    """Runs `body(number)` as the members of a pack; returns what each ended with."""
    ends = [None] * count

    def run(number):
        try:
            ends[number] = body(number)
        except Exception as error:
            ends[number] = error
        finally:
            pack.leave(number)

    threads = [
        threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return ends


def test_a_pack_computes_once_for_all_and_waits_for_none_that_left():
    pack, sizes = Pack((0, 1, 2)), []

    def double(rows):
        sizes.append(len(rows))
        return [2 * row for row in rows]

    pack.add("double", lambda seeds: double)

    def body(number):
        # The first run ends after one call, the last after three.
        return [
            int(pack.call(number, "double", jnp.int32(10 * number + turn)))
            for turn in range(number + 1)
        ]

    assert in_threads(pack, 3, body) == [[0], [20, 22], [40, 42, 44]]
    assert sizes == [3, 3, 3], "a program keeps its size"


def test_runs_that_call_different_programs_do_not_wait_for_each_other_for_ever():
    """One resumes at another step than the other, and evaluates when it does not."""
    pack = Pack((0, 1))
    pack.add("step", lambda seeds: lambda rows: [row + 1 for row in rows])
    pack.add("sums", lambda seeds: lambda rows: [-row for row in rows])
    programs = (["step", "sums", "step", "step"], ["step", "step", "sums"])

    def body(number):
        x = jnp.int32(0)
        for name in programs[number]:
            x = pack.call(number, name, x)
        return int(x)

    assert in_threads(pack, 2, body) == [1, -2]


def test_a_program_that_fails_fails_for_each():
    pack = Pack((0, 1))

    def fail(rows):
        raise ValueError("the same for all")

    pack.add("step", lambda seeds: fail)
    ends = in_threads(pack, 2, lambda number: pack.call(number, "step", jnp.int32(0)))
    assert [str(end) for end in ends] == ["the same for all"] * 2


@pytest.fixture
def configs_of_two(brief_config):
    return [brief_config(seed=seed, train__steps=6) for seed in (0, 1)]


@pytest.mark.conformance
def test_a_pack_of_runs_ends_like_each_alone(configs_of_two, tmp_path):
    folders = [str(tmp_path / name) for name in "ab"]
    assert train_together(configs_of_two, folders) == [None, None]
    for config, folder in zip(configs_of_two, folders, strict=True):
        alone = loop.train(config, tmp_path / "alone" / str(config.seed))
        found = Run(tmp_path / folder).result()
        assert found["step"] == alone["step"] == 6
        record = Run(tmp_path / folder).record()
        assert record["packed_seeds"] == [0, 1], "run.json tells that they were packed"
        for name in ("loss", "gradient_norm", "eval_bpb"):
            np.testing.assert_allclose(found[name], alone[name], rtol=1e-5)
    # Finished: nothing is computed.
    assert train_together(configs_of_two, folders) == [None, None]


@pytest.mark.conformance
def test_a_pack_that_is_stopped_resumes(configs_of_two, tmp_path, monkeypatch):
    whole = [str(tmp_path / name) for name in ("c", "d")]
    assert train_together(configs_of_two, whole) == [None, None]
    evaluate = jax.device_get

    def send(values):
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(jax, "device_get", evaluate)
        return evaluate(values)

    monkeypatch.setattr(jax, "device_get", send)
    folders = [str(tmp_path / name) for name in ("e", "f")]
    ends = train_together(configs_of_two, folders)
    assert all(isinstance(end, Stopped) for end in ends), ends
    assert train_together(configs_of_two, folders) == [None, None]
    for broken, unbroken in zip(folders, whole, strict=True):
        found, wanted = (Run(tmp_path / one).result() for one in (broken, unbroken))
        for name in ("loss", "eval_bpb"):
            assert found[name] == wanted[name]
