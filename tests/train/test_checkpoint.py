"""Checkpoints: what is restored is what was saved, or an error says why not."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import textwrap
import time
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reslab.core.errors import ReslabError
from reslab.drill.disk import Disk, after_cut
from reslab.runtime.storage import StorageFailed
from reslab.train import checkpoint
from reslab.train import digests as digest_module
from reslab.train.checkpoint import (
    Checkpoints,
    DamagedCheckpoint,
    NotFinite,
    SaveFailed,
)
from reslab.train.digests import digests, examine


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    rng: Any


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]), ("fsdp",))


def shardings(tree, devices):
    """Shards the first axis where it divides, like fully sharded parameters."""

    def one(leaf):
        is_split = leaf.ndim > 0 and leaf.shape[0] % devices == 0
        spec = PartitionSpec("fsdp") if is_split else PartitionSpec()
        return NamedSharding(mesh_of(devices), spec)

    return jax.tree.map(one, tree)


def init():
    params = {
        "dense": {"kernel": jax.random.normal(jax.random.key(1), (16, 24))},
        "scale": jnp.arange(8, dtype=jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(0), params, optimizer.init(params), jax.random.key(7))


def make_state(devices=1):
    shapes = jax.eval_shape(init)
    return jax.jit(init, out_shardings=shardings(shapes, devices))()


def target_of(tree, devices=1):
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        tree,
        shardings(tree, devices),
    )


def values(tree):
    return [
        np.asarray(jax.random.key_data(x))
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else np.asarray(x)
        for x in jax.tree.leaves(tree)
    ]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(values(a), values(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def saved(tmp_path):
    """A directory with one checkpoint, of step 5."""
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.save(5, make_state(), data_index=40, force=True)
    return tmp_path / "c"


@pytest.mark.parametrize("is_async", [True, False])
def test_round_trip(tmp_path, is_async):
    state = make_state()
    with Checkpoints(tmp_path, every=2, is_async=is_async) as checkpoints:
        assert checkpoints.latest_step() is None
        assert not checkpoints.save(1, state, data_index=8)
        assert checkpoints.save(2, state, data_index=16, metrics={"loss": 2.5})
        assert not checkpoints.save(2, state, data_index=16, force=True)
        checkpoints.wait()
        assert checkpoints.latest_step() == 2
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(target_of(state))
    assert (restored.step, restored.data_index) == (2, 16)
    assert_same(restored.state, state)


@pytest.mark.parametrize(("before", "after"), [(8, 4), (4, 1), (1, 8), (8, 8)])
def test_another_mesh(tmp_path, before, after):
    state = make_state(before)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, data_index=0, force=True)
        restored = checkpoints.restore(target_of(state, after)).state
    assert digests(restored) == digests(state)
    assert restored.params["dense"]["kernel"].sharding.num_devices == after
    assert_same(restored, state)


def test_state_may_be_donated_after_an_async_save(tmp_path):
    state = make_state(8)
    expected = values(state)
    shift = jax.jit(
        lambda params: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), params),
        donate_argnums=0,
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, data_index=0, force=True)
        params = state.params
        for _ in range(5):
            params = shift(params)
        restored = checkpoints.restore(target_of(jax.eval_shape(init))).state
    for x, y in zip(values(restored), expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_dict_state_and_plain_target_without_sharding(tmp_path):
    state = {"step": jnp.int32(3), "params": {"w": jnp.ones((4, 2))}}
    target = jax.eval_shape(lambda: state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, data_index=1, force=True)
        assert_same(checkpoints.restore(target).state, state)


def test_params_only(saved):
    state = make_state()
    with Checkpoints(saved, is_read_only=True) as checkpoints:
        target = {"params": target_of(state.params, 8)}
        params = checkpoints.restore_parts(target)["params"]
        assert_same(params, state.params)
        # The same object may restore everything, too.
        assert_same(checkpoints.restore(target_of(state)).state, state)
        with pytest.raises(ReslabError, match="params/scale has shape"):
            other = {**state.params, "scale": jnp.zeros(3, jnp.bfloat16)}
            checkpoints.restore_parts({"params": other})


def test_structure_mismatch_names_the_parameters(saved):
    state = make_state()
    kernel = jnp.zeros((16, 25))
    other = state._replace(
        params={"dense": {"kernel": kernel}, "extra": jnp.zeros(1)},
    )
    with Checkpoints(saved) as checkpoints, pytest.raises(ReslabError) as caught:
        checkpoints.restore(target_of(other))
    message = str(caught.value)
    assert "params/dense/kernel has shape (16, 24) in the checkpoint, (16, 25)" in (
        message
    )
    assert "params/extra is missing in the checkpoint" in message
    assert "params/scale is only in the checkpoint" in message
    assert "\n" not in message and not isinstance(caught.value, DamagedCheckpoint)


def test_many_differences_are_counted(saved):
    with Checkpoints(saved) as checkpoints, pytest.raises(ReslabError) as caught:
        checkpoints.restore({"w": jnp.zeros(2)})
    total = len(jax.tree.leaves(make_state())) + 1
    assert f"and {total - 3} more" in str(caught.value)


def test_dtype_mismatch_is_refused(saved):
    state = make_state()
    half = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, state.params
    )
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(ReslabError, match=r"kernel has dtype float32 .* bfloat16"),
    ):
        checkpoints.restore(target_of(state._replace(params=half)))


def files_of(directory):
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.stat().st_size)


def damages(content, generator):
    flipped = bytearray(content)
    flipped[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
    yield bytes(flipped)
    middle = len(content) // 2
    yield content[:middle]
    yield content[:middle] + bytes(len(content) - middle)


@pytest.mark.exhaustive  # The drill damages sixty files in every run.
def test_damaged_files_never_give_wrong_values(saved):
    """Every file of the step, three ways: the true state, or `DamagedCheckpoint`."""
    state = make_state()
    generator = np.random.default_rng(0)
    refused = 0
    for path in files_of(saved / "5"):
        content = path.read_bytes()
        for damaged in damages(content, generator):
            path.write_bytes(damaged)
            with Checkpoints(saved, is_read_only=True) as checkpoints:
                try:
                    restored = checkpoints.restore(target_of(state))
                except DamagedCheckpoint as error:
                    assert "\n" not in str(error)
                    refused += 1
                else:
                    assert (restored.step, restored.data_index) == (5, 40)
                    assert_same(restored.state, state)
        path.write_bytes(content)
    assert refused >= 10


def test_flipped_array_bits_are_named(saved):
    """Orbax itself restores flipped array data without a word."""
    state = make_state()
    kernel = np.asarray(state.params["dense"]["kernel"])
    other = kernel.copy()
    other[0, 0] += 1.0
    changed = state._replace(params={**state.params, "dense": {"kernel": other}})
    with Checkpoints(saved.parent / "other") as checkpoints:
        checkpoints.save(5, jax.device_put(changed), data_index=40, force=True)
    shutil.rmtree(saved / "5" / "state")
    shutil.copytree(saved.parent / "other" / "5" / "state", saved / "5" / "state")
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(DamagedCheckpoint, match="bits in params/dense/kernel"),
    ):
        checkpoints.restore(target_of(state))


def test_no_checkpoint(tmp_path):
    directory = tmp_path / "none"
    with Checkpoints(directory, is_read_only=True) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(ReslabError, match="no checkpoint"):
            checkpoints.restore(target_of(make_state()))
    assert not directory.exists()


def test_unknown_step(saved):
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(ReslabError, match="no checkpoint of step 4: expected one of 5"),
    ):
        checkpoints.restore(target_of(make_state()), step=4)


def test_unusable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReslabError, match="checkpoint directory"):
        Checkpoints(tmp_path / "file" / "c")


def test_newest_are_kept_and_older_refused(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep=2, every=1) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, state, data_index=step)
        checkpoints.wait()
        assert checkpoints.steps() == (3, 4)
        with pytest.raises(ReslabError, match="newest checkpoint, 4"):
            checkpoints.save(2, state, data_index=2)
        assert checkpoints.restore(target_of(state), step=3).data_index == 3


def test_metrics_that_are_not_finite_are_left_out(tmp_path):
    metrics = {"loss": float("nan"), "bpb": 2.0, "norm": float("inf")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), data_index=0, metrics=metrics, force=True)
    stored = json.loads((tmp_path / "1" / "summary" / "metadata").read_text())
    assert stored == {"bpb": 2.0}


def run(script, *arguments):
    """Runs a script in a process of its own, which may break as it likes."""
    root = str(pathlib.Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_full_disk_is_an_error_and_the_step_before_is_intact(tmp_path):
    """File size is limited, which the writing thread meets as it would a full disk."""
    done = run(
        """
        import resource, sys
        import jax.numpy as jnp
        import numpy as np
        from reslab.train.checkpoint import Checkpoints, SaveFailed

        with Checkpoints(sys.argv[1], every=1) as checkpoints:
            checkpoints.save(1, {"params": {"w": jnp.ones(4)}}, data_index=1)
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            noise = np.random.default_rng(0).normal(size=100_000)
            noise = jnp.asarray(noise.astype(np.float32))
            assert checkpoints.save(2, {"params": {"w": noise}}, data_index=2)
            print("saving")
            try:
                checkpoints.wait()
            except SaveFailed:
                print("raised")
                raise SystemExit(70)
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout.split()) == (70, ["saving", "raised"])
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        target = {"params": {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}}
        assert np.all(np.asarray(checkpoints.restore(target).state["params"]["w"]) == 1)


def test_an_error_inside_is_not_hidden_by_closing(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints, "wait", lambda: 1 / "a")
        raise ZeroDivisionError


def test_leaves_must_be_arrays(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ReslabError, match="state leaf step: expected a JAX array"),
    ):
        checkpoints.save(1, {"step": 1, "params": {}}, data_index=0, force=True)


def assert_remains_go(directory):
    """They are removed in the background."""
    end = time.monotonic() + 20
    while list(directory.glob("*orbax*")):
        assert time.monotonic() < end, sorted(directory.iterdir())
        time.sleep(0.01)


def test_remains_of_a_kill_are_ignored_and_removed(saved):
    remains = saved / "6.orbax-checkpoint-tmp"
    shutil.copytree(saved / "5", remains)
    (saved / "7").mkdir()  # Empty: Orbax alone would call it the newest step.
    with Checkpoints(saved, is_read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 5
    assert remains.exists()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.restore(target_of(make_state())).step == 5
        assert_remains_go(saved)


def test_kill_during_a_save(tmp_path):
    """The process dies as soon as the save has begun to write files."""
    done = run(
        """
        import os, pathlib, signal, sys, threading, time
        import jax.numpy as jnp
        from reslab.train.checkpoint import Checkpoints

        directory = pathlib.Path(sys.argv[1])

        def kill():
            while not list(directory.glob("2.orbax*")):
                time.sleep(0.0005)
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoints = Checkpoints(directory, every=1)
        checkpoints.save(1, {"params": {"w": jnp.full((64, 64), 1.0)}}, data_index=1)
        checkpoints.wait()
        threading.Thread(target=kill, daemon=True).start()
        checkpoints.save(2, {"params": {"w": jnp.full((512, 512), 2.0)}}, data_index=2)
        checkpoints.wait()
        time.sleep(5)
        """,
        tmp_path,
    )
    assert done.returncode == -9
    with Checkpoints(tmp_path) as checkpoints:
        step = checkpoints.latest_step()
        assert step in (1, 2)
        size = 64 if step == 1 else 512
        target = {"params": {"w": jax.ShapeDtypeStruct((size, size), jnp.float32)}}
        restored = checkpoints.restore(target)
    assert restored.data_index == step
    assert np.all(np.asarray(restored.state["params"]["w"]) == step)
    assert_remains_go(tmp_path)


def oracle(array):
    """The digest in NumPy, with Python's own integers."""
    array = np.ascontiguousarray(array)
    words = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
    bits = array.reshape(-1).view(words).tolist()
    return sum(b * (2 * i + 1) for i, b in enumerate(bits)) % 2**32


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint8", "float16", "bfloat16", "int32", "float32", "complex64"],
)
def test_digest_is_that_of_the_formula(dtype):
    generator = np.random.default_rng(3)
    array = jnp.asarray(generator.integers(0, 2**31, (6, 5, 4))).astype(dtype)
    assert digests({"x": array}) == {"x": oracle(np.asarray(array))}


def test_digest_of_64_bits():
    with jax.enable_x64(True):
        array = jnp.linspace(0.0, 1.0, 15, dtype=jnp.float64).reshape(3, 5)
        assert digests({"x": array}) == {"x": oracle(np.asarray(array))}


def test_digest_of_random_keys_scalars_and_nothing():
    keys = jax.random.split(jax.random.key(0), 3)
    tree = {"keys": keys, "one": jnp.float32(1.0), "none": jnp.zeros((0, 3))}
    assert digests(tree) == {
        "keys": oracle(np.asarray(jax.random.key_data(keys))),
        "one": oracle(np.float32(1.0)),
        "none": 0,
    }


def test_every_flipped_bit_and_swap_changes_the_digest():
    bits = np.random.default_rng(4).integers(0, 2**32, 12, dtype=np.uint32)
    good = digests({"x": jnp.asarray(bits)})
    for index in range(bits.size):
        for bit in range(32):
            flipped = bits.copy()
            flipped[index] ^= np.uint32(1 << bit)
            assert digests({"x": jnp.asarray(flipped)}) != good
    swapped = bits[[1, 0, *range(2, 12)]]
    assert digests({"x": jnp.asarray(swapped)}) != good


@pytest.mark.parametrize(
    "spec", [("a", "b"), (("a", "b"), None), (None, "a"), ("b",), ()]
)
def test_digest_is_the_same_on_any_mesh_and_gathers_nothing(spec):
    array = jax.random.normal(jax.random.key(0), (16, 8, 3))
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("a", "b"))
    sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    assert digests({"x": sharded}) == digests({"x": array})
    compiled = jax.jit(lambda x: digest_leaf(x)).lower(sharded).compile().as_text()
    assert "all-gather" not in compiled and "all-to-all" not in compiled


def test_values_that_are_not_finite_are_found_in_every_dtype():
    with jax.enable_x64(True):
        for dtype in ("float16", "bfloat16", "float32", "float64", "complex64"):
            good = jnp.ones((3, 5), dtype)
            tree = {"good": good, "nan": good.at[2, 4].set(jnp.nan)}
            tree["inf"] = good.at[0, 0].set(-jnp.inf)
            assert examine(tree)[1] == ["inf", "nan"]
            assert digests(tree)["nan"] == oracle(np.asarray(tree["nan"]))
        mesh = Mesh(np.array(jax.devices()[:8]), "a")
        sharding = NamedSharding(mesh, PartitionSpec("a"))
        sharded = {"x": jax.device_put(jnp.ones(16).at[9].set(jnp.nan), sharding)}
        assert examine(sharded)[1] == ["x"]
        assert digests(sharded) == digests({"x": jnp.ones(16).at[9].set(jnp.nan)})
    rest = {"integers": jnp.full(3, 2**31 - 1), "keys": jax.random.key(0)}
    assert not examine(rest | {"nothing": jnp.zeros(0)})[1]


def test_a_state_that_is_not_finite_is_neither_saved_nor_restored(
    tmp_path, monkeypatch
):
    with Checkpoints(tmp_path, every=1, is_async=False) as checkpoints:
        checkpoints.save(1, small(1), data_index=8)
        with pytest.raises(NotFinite, match=r"step 2 is not saved.*params/w"):
            checkpoints.save(2, small(np.inf), data_index=16)
        assert checkpoints.steps() == (1,)
        with monkeypatch.context() as older:  # It looked at nothing.
            examine = checkpoint.examine
            older.setattr(checkpoint, "examine", lambda s: (examine(s)[0], []))
            checkpoints.save(2, small(np.nan), data_index=16)
        with pytest.raises(DamagedCheckpoint, match="not finite in params/w"):
            checkpoints.restore(target_of(small(1)))
        assert checkpoints.restore_newest(target_of(small(1))).step == 1


def digest_leaf(leaf):
    return digest_module._digest(leaf)


def saved_steps(directory, *steps, **options):
    """Checkpoints whose step and weight are the same number."""
    with Checkpoints(directory, every=1, is_async=False, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, small(step), data_index=8 * step)
    return directory


def small(value):
    return {"params": {"w": jnp.full((4,), float(value), jnp.float32)}}


def damage(directory, step):
    for path in files_of(directory / str(step) / "state"):
        path.write_bytes(b"\0" * path.stat().st_size)


def test_a_damaged_newest_step_is_set_aside(tmp_path, capsys):
    saved_steps(tmp_path, 1, 2, 3)
    damage(tmp_path, 3)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(DamagedCheckpoint, match="step 3"),
    ):
        checkpoints.restore_newest(small(0), is_strict=True)
    (tmp_path / "4").mkdir()  # Its files are gone: Orbax would call it the newest.
    with Checkpoints(tmp_path, every=1) as checkpoints:
        restored = checkpoints.restore_newest(small(0))
        assert (restored.step, restored.data_index) == (2, 16)
        assert_same(restored.state, small(2))
        # The run comes to the same steps again.
        assert checkpoints.save(3, small(30), data_index=24)
        assert_same(checkpoints.restore_newest(small(0)).state, small(30))
    aside = sorted(p.name.rpartition("-")[0] for p in tmp_path.glob("corrupt-*"))
    assert aside == ["corrupt-3", "corrupt-4"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.endswith("set aside") for line in lines)
    assert len(files_of(next(tmp_path.glob("corrupt-3-*")))) > 3


def test_without_an_intact_step_nothing_begins_anew(tmp_path):
    saved_steps(tmp_path, 1, 2)
    damage(tmp_path, 1)
    shutil.rmtree(tmp_path / "2" / "integrity")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(DamagedCheckpoint, match=r"no checkpoint in .* is intact"),
    ):
        checkpoints.restore_newest(small(0))
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore_newest(small(0)) is None


def test_other_parameters_are_never_walked_past(tmp_path):
    saved_steps(tmp_path, 1, 2)
    other = {"params": {"w": jnp.zeros(5)}}
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ReslabError, match="params/w has shape") as caught,
    ):
        checkpoints.restore_newest(other)
    assert not isinstance(caught.value, DamagedCheckpoint)
    assert not list(tmp_path.glob("corrupt-*"))


def test_multiples_are_kept_for_good(tmp_path):
    saved_steps(tmp_path, *range(1, 8), keep=1, keep_every=3)
    with Checkpoints(tmp_path, is_read_only=True) as checkpoints:
        assert checkpoints.steps() == (3, 6, 7)


def test_a_failed_save_is_told_in_one_line(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.check()

        def fail():
            raise OSError("No space left\non device")

        monkeypatch.setattr(checkpoints._manager, "check_for_errors", fail)
        with pytest.raises(SaveFailed) as caught:
            checkpoints.check()
        assert str(caught.value).endswith(f"{tmp_path}: No space left")


@pytest.mark.parametrize("fails", [False, True])
def test_the_handle_of_a_failed_save_is_not_used_again(tmp_path, monkeypatch, fails):
    """Its threads may write on, to wherever the number of the handle leads."""
    checkpoints = Checkpoints(tmp_path / "c", every=1)
    handle = checkpoints._place._handle

    def fail():
        raise OSError("No space left on device")

    if fails:
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
        with pytest.raises(SaveFailed):
            checkpoints.close()
        assert os.path.samestat(os.fstat(handle), os.stat(tmp_path / "c"))
        os.close(handle)
    else:
        checkpoints.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


@pytest.mark.parametrize("kind", ["rename", "delete", "replace", "file"])
def test_a_directory_that_is_gone_is_noticed_and_not_made_again(tmp_path, kind):
    directory, gone = tmp_path / "run" / "c", tmp_path / "gone"
    with pytest.raises(StorageFailed, match="renamed, deleted or replaced"):  # noqa: SIM117
        with Checkpoints(directory, every=1) as checkpoints:
            checkpoints.save(1, small(1), data_index=8)
            # While it is being written.
            directory.parent.rename(gone)
            if kind == "delete":
                shutil.rmtree(gone, ignore_errors=True)
            elif kind == "replace":
                directory.mkdir(parents=True)
            elif kind == "file":
                directory.parent.write_text("a file")
            checkpoints.check()
    if kind == "replace":
        assert not list(directory.iterdir())
    elif kind == "file":
        assert directory.parent.read_text() == "a file"
    else:
        assert not directory.parent.exists()
    if kind != "delete":
        with Checkpoints(gone / "c") as checkpoints:
            assert checkpoints.restore(small(0)).step == 1


def test_an_interrupted_deletion_is_finished(tmp_path):
    saved_steps(tmp_path, 1, 2, 3, 4, 5, 6, keep=6)
    for step in (1, 2, 4):  # Of a deletion that was killed, files are left.
        shutil.rmtree(tmp_path / str(step) / "integrity")
    with Checkpoints(tmp_path, keep=2, keep_every=3) as checkpoints:
        assert checkpoints.restore_newest(small(0)).step == 6
        assert checkpoints.steps() == (3, 5, 6)
        checkpoints.save(7, small(7), data_index=56, force=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"3", "6", "7"}


def test_nothing_is_deleted_that_a_damaged_newest_step_needs(tmp_path):
    saved_steps(tmp_path, 1, 2, keep=2)
    damage(tmp_path, 2)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.restore_newest(small(0)).step == 1


def test_a_step_is_on_the_disk_when_it_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", os.fsync)  # `Disk` replaces it.
    (tmp_path / "root").mkdir()
    Disk(tmp_path / "root", tmp_path / "disk")
    with Checkpoints(tmp_path / "root" / "run" / "c", every=1) as checkpoints:
        checkpoints.save(1, small(1), data_index=8)
        checkpoints.wait()
        after_cut(tmp_path / "root", tmp_path / "disk", tmp_path / "out", Worst())
    with Checkpoints(tmp_path / "out" / "run" / "c") as checkpoints:
        restored = checkpoints.restore_newest(small(0), is_strict=True)
    assert restored.step == 1 and restored.state["params"]["w"][0] == 1.0


class Worst(random.Random):
    """All that may be lost is lost."""

    def choice(self, seq):
        return seq[0]


def test_late_reports_of_a_failed_save_are_dropped(tmp_path, capsys, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    for _ in range(2):
        with Checkpoints(tmp_path):
            pass
    late, other = RuntimeError("Event loop is closed"), RuntimeError("another")
    for error in (late, other):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [about.exc_value for about in told] == [other]
