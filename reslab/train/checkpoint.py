"""Checkpoints that are verified: Orbax for storage, our own digests for trust.

Orbax commits a step atomically and restores it on any mesh, but it does not
notice flipped bits, it casts dtypes without a word, and its errors name no
parameter. So every step also stores the name, shape, dtype and digest of each
leaf, compared before and after a restore. This is the only file that knows Orbax.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import logging
import math
import os
import pathlib
import shutil
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from reslab.core.errors import ReslabError
from reslab.parallel.hosts import agree, is_writer, wait_for_all
from reslab.runtime.files import Place, make_directory, sync, sync_tree
from reslab.runtime.storage import StorageFailed, local_path, storage_error
from reslab.train.abandoned import WithoutLateReports, await_abandoned_reads, quiet
from reslab.train.digests import Tree, describe, differing, examine, seal
from reslab.train.identity import compare

# Orbax counts the saves of a process: those of several threads would wait for each
# other's files.
_saving = threading.Lock()


class DamagedCheckpoint(ReslabError):
    """A committed checkpoint whose files no longer hold what was saved."""


class NotFinite(ReslabError):
    """A state that holds infinities or NaN, which is not saved."""


class SaveFailed(StorageFailed):
    """A checkpoint could not be written; those before it are as they were."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """Content of a checkpoint.

    Attributes:
      step: The step it was saved at.
      state: The train state, on the shardings of the target.
      data_index: The index of the next example, for the data iterator.
      summary: The caller's own figures of that step.
    """

    step: int
    state: Tree
    data_index: int
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class _Durable(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A temporary folder that takes its name once all of it is on the disk."""

    async def finalize(self) -> None:
        """Commits the folder; a step outlasts a power cut from then on."""
        final = pathlib.Path(self.get_final())
        if not final.name.isdigit():  # An item of a step, which is not committed yet.
            return await super().finalize()
        await asyncio.to_thread(sync_tree, str(self.get()))
        await super().finalize()
        for path in (*filter(pathlib.Path.is_file, final.iterdir()), final):
            sync(path)  # Orbax has committed it meanwhile.
        sync(final.parent)


class Checkpoints:
    """The checkpoints of one run, one folder per step.

    A step is written to a temporary folder, which is renamed when all of it is on
    the disk, so a kill or a power cut at any moment leaves the earlier steps intact.
    The directory is held: if it is renamed, deleted or replaced, nothing is written
    in its place, and the next call says so. Asynchronous saves copy the
    state to the host before `save` returns: the caller may donate it at once.
    In a multi-process run every process makes the same calls.

    Args:
      directory: Where the steps are; created unless `is_read_only`.
      keep: How many of the newest steps are kept.
      keep_every: Steps that are multiples of this are kept, too; 0 disables it.
      every: Number of steps between two saves.
      identity: What the checkpoints are of (see `reslab.train.identity`): sealed into
        those that are saved, compared with those that are read. None does neither.
      is_async: Whether files are written behind the caller's back.
      is_compressed: Whether files are compressed, for which leaves are held in memory
        twice; weights become little smaller.
      is_read_only: Whether to leave the directory exactly as it is. Set it to
        read the checkpoints of a run that may still be active: otherwise
        half-written steps are taken for the remains of a kill and removed.

    Raises:
      ReslabError: If the directory cannot be created or read.
      StorageFailed: If the storage fails.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        keep_every: int = 0,
        every: int = 1000,
        identity: Mapping[str, str] | None = None,
        is_async: bool = True,
        is_compressed: bool = True,
        is_read_only: bool = False,
    ):
        # Failures are raised here, in one line; Orbax would also log them at length.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        if not isinstance(sys.unraisablehook, WithoutLateReports):
            sys.unraisablehook = WithoutLateReports(sys.unraisablehook)
        self._every, self._keep, self._keep_every = every, keep, keep_every
        self._path = local_path(directory, "checkpoint directory").absolute()
        self._place: Place | None = None
        self._identity = identity
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            create=not is_read_only,
            read_only=is_read_only,
            cleanup_tmp_directories=not is_read_only,
            enable_async_checkpointing=is_async,
            temporary_path_class=_Durable,
        )
        try:
            if not is_read_only:
                make_directory(self._path)
                self._place = Place(self._path)
            # Through the open handle: another directory may take its name.
            used = self._place.held if self._place else self._path
            self._manager = ocp.CheckpointManager(
                used,
                options=options,
                handler_registry=None if is_compressed else _uncompressed(),
            )
            if self._path.exists():
                next(self._path.iterdir(), None)
        except OSError as error:
            raise storage_error(
                f"checkpoint directory {directory}",
                error,
                expected="a directory that can be used",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        # A second failure while closing must not hide the first.
        guard = contextlib.suppress(Exception) if error else contextlib.nullcontext()
        with guard:
            self.close()

    def is_due(self, step: int) -> bool:
        """Returns whether the interval asks for a checkpoint at `step`."""
        return step > 0 and step % self._every == 0

    def save(
        self,
        step: int,
        state: Tree,
        *,
        data_index: int,
        metrics: Mapping[str, float] | None = None,
        summary: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> bool:
        """Saves a step if it is due, or if `force` is set.

        Args:
          step: Number of completed steps, greater than any saved step.
          state: Pytree of JAX arrays.
          data_index: The index of the next example.
          metrics: Kept beside the state for the reader; values that are not
            finite are left out.
          summary: Sealed with the state and given back by a restore; JSON values.
          force: Whether to save between two intervals.

        Returns:
          Whether a checkpoint was started. False when it is not due or when the
          newest checkpoint is already of this step.

        Raises:
          ReslabError: If a newer checkpoint exists: Orbax would drop this one.
          NotFinite: If a value of the state is not finite; nothing is saved.
          SaveFailed: If this checkpoint, or the one before, could not be written.
        """
        newest = self._manager.latest_step()
        if step == newest or not (force or self.is_due(step)):
            return False
        if newest is not None and step < newest:
            raise ReslabError(
                f"checkpoint of step {step} in {self._path}",
                expected=f"a step after the newest checkpoint, {newest}",
                hint="resume from it, or move the newer folders away",
            )
        finite = {
            name: float(value)
            for name, value in (metrics or {}).items()
            if math.isfinite(value)
        }
        found, wrong = examine(state)
        if wrong:
            raise NotFinite(
                f"the state of step {step} is not saved",
                expected="finite values",
                got=f"others in {', '.join(wrong[:3])} ({len(wrong)} in all)",
            )
        record = {
            "step": step,
            "data_index": int(data_index),
            "leaves": describe(state, found),
            "identity": dict(self._identity or {}),
            "summary": dict(summary or {}),
        }
        integrity = {"record": record, "sha256": seal(record)}
        is_alone = threading.current_thread() is threading.main_thread()
        with self._reporting(), _saving:
            # `force` only skips Orbax's own interval, which is decided above.
            is_begun = self._manager.save(
                step,
                force=True,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    data=ocp.args.JsonSave({"index": int(data_index)}),
                    integrity=ocp.args.JsonSave(integrity),
                    # Not `metrics`: Orbax reads an item of that name at every
                    # start, and one damaged file would bar the whole directory.
                    summary=ocp.args.JsonSave(finite),
                ),
            )
            if not is_alone:
                self._manager.wait_until_finished()
            return is_begun

    def steps(self) -> tuple[int, ...]:
        """The committed steps, oldest first, as the directory has them now."""
        directory = self._manager.directory
        return tuple(
            step
            for step in self._all_steps()
            if (directory / str(step) / "integrity").exists()
        )

    def _all_steps(self) -> tuple[int, ...]:
        """Returns the committed steps and the remains of steps without a record."""
        directory = self._manager.directory
        if not directory.exists():
            return ()
        return tuple(sorted(ocp.utils.checkpoint_steps(directory)))

    def latest_step(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def restore(self, target: Tree, step: int | None = None) -> Restored:
        """Restores and verifies a step.

        Args:
          target: The train state as `jax.ShapeDtypeStruct` leaves with the
            shardings to restore to, or as arrays. A leaf without a sharding is
            put on the first device.
          step: Which step; the newest when None.

        Returns:
          The state, bit for bit as it was saved; `opt_state` is None where there was
          none, as in a run that was imported.

        Raises:
          DamagedCheckpoint: If the files do not hold what was saved.
          ReslabError: If there is no such checkpoint, or if it holds other
            parameters than the target: it names the first that differ.
        """
        step = self._choose(step)
        with self._together(step):
            record = self._record(step)
        if _lacks_optimizer(record["leaves"], target):
            target = target._replace(opt_state=None)
        state = self._read(step, target, record["leaves"])
        return Restored(step, state, record["data_index"], record.get("summary", {}))

    def restore_newest(
        self, target: Tree, *, is_strict: bool = False
    ) -> Restored | None:
        """Restores the newest step that is intact and sets damaged ones aside.

        A damaged step is renamed to `corrupt-<step>-<time>`: it would bar the way of
        the same step when the run comes to it again. All processes restore the same
        step, or none does. A step with other parameters than the target is a mistake
        of the caller, never passed over.

        Args:
          target: As in `restore`.
          is_strict: Whether damage is an error, instead.

        Returns:
          The state; None if there has been no checkpoint.

        Raises:
          DamagedCheckpoint: If no step is intact, or a newer one is not and
            `is_strict` is set.
          ReslabError: If a step holds other parameters than the target.
        """
        self.wait()
        steps = self._all_steps()
        for step in reversed(steps):
            try:
                restored = self.restore(target, step)
            except DamagedCheckpoint as error:
                if is_strict:
                    raise
                self._set_aside(step, error)
            else:
                self._finish_deletions()
                return restored
        if steps:
            raise DamagedCheckpoint(
                f"no checkpoint in {self._path} is intact",
                got=f"{len(steps)} damaged, set aside as corrupt-*",
                hint="restore them from a copy, or start again with another --run",
            )
        return None

    def _finish_deletions(self) -> None:
        """Deletes old steps whose deletion was interrupted."""
        kept = self.steps()[-self._keep :]
        every = self._keep_every
        old = [
            step
            for step in self._all_steps()
            if step < kept[0] and not (every and step % every == 0)
        ]
        if old:
            if is_writer():
                for step in old:
                    shutil.rmtree(self._manager.directory / str(step))
            wait_for_all("finish deletions")
            self._manager.reload()

    def _set_aside(self, step: int, error: DamagedCheckpoint) -> None:
        if is_writer():
            now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
            folder = self._manager.directory / str(step)
            folder.rename(self._manager.directory / f"corrupt-{step}-{now}")
            print(f"{error}; set aside", file=sys.stderr)
        wait_for_all(f"set aside {step}")
        # Otherwise a later save of this step would be dropped silently.
        self._manager.reload()

    def restore_parts(
        self, target: Mapping[str, Tree], step: int | None = None
    ) -> dict[str, Tree]:
        """Restores and verifies some fields of the state; others are not read.

        Args:
          target: Fields by name, given as in `restore`.
          step: Which step; the newest when None.

        Returns:
          The fields by name.

        Raises:
          DamagedCheckpoint: If the files do not hold what was saved.
          ReslabError: As in `restore`.
        """
        step = self._choose(step)
        with self._together(step):
            record = self._record(step)
        stored = {
            name: leaf
            for name, leaf in record["leaves"].items()
            if name.split("/")[0] in target
        }
        return self._read(step, dict(target), stored)

    def seal(self, step: int) -> str:
        """The digest of what a step holds: of its leaves, its place and its identity.

        Raises:
          DamagedCheckpoint: If the record of the step is damaged.
        """
        return seal(self._record(step))

    def wait(self) -> None:
        """Waits for the save in progress.

        Raises:
          StorageFailed: If it failed, or the directory is not where it was.
        """
        with self._reporting():
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Checks that saves have not failed so far; waits for none.

        Raises:
          StorageFailed: If one has, or the directory is not where it was.
        """
        with self._reporting():
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Tells in one line that storage has failed, or the directory is gone."""
        self._check_place()
        try:
            yield
        except ReslabError:
            raise
        except Exception as error:
            self._check_place()
            lines = str(error).splitlines() or [type(error).__name__]
            line = lines[0].replace(str(self._manager.directory), str(self._path))
            raise SaveFailed(
                f"a checkpoint could not be written to {self._path}: {line[:200]}"
            ) from error
        self._check_place()

    def _check_place(self) -> None:
        if self._place:
            self._place.check()

    def close(self) -> None:
        """Waits, raises if the last save failed, and frees the threads."""
        try:
            self.wait()
        except BaseException:
            # Threads of a failed save may still write. The handle stays open: a reused
            # number would lead them into another directory.
            self._place = None
            with contextlib.suppress(Exception):
                self._manager.close()
            raise
        self._manager.close()
        if self._place:
            self._place.close()

    def _choose(self, step: int | None) -> int:
        self.wait()  # A save in progress counts as well.
        steps = self.steps() if step is None else self._all_steps()
        where = self._path
        if not steps:
            raise ReslabError(
                f"{where} has no checkpoint", hint="train first, or check the path"
            )
        if step is None:
            return steps[-1]
        if step not in steps:
            raise ReslabError(
                f"{where} has no checkpoint of step {step}",
                expected=f"one of {', '.join(map(str, steps))}",
            )
        return step

    def _record(self, step: int) -> dict[str, Any]:
        """Reads what a step should hold; the record is sealed against damage too."""
        items = self._load(
            step, integrity=ocp.args.JsonRestore(), data=ocp.args.JsonRestore()
        )
        try:
            record = items["integrity"]["record"]
            is_sound = items["integrity"]["sha256"] == seal(record)
            is_sound &= record["step"] == step
            is_sound &= record["data_index"] == items["data"]["index"]
        except (KeyError, TypeError):
            is_sound = False
        if not is_sound:
            raise self._damaged(step, "records that contradict each other")
        record = items["integrity"]["record"]
        if self._identity is not None:
            where = f"the checkpoint of step {step} in {self._path}"
            # Checkpoints of older versions have none.
            compare(record.get("identity", {}), self._identity, where)
        return record

    def _read(self, step: int, target: Tree, stored: Mapping[str, Any]) -> Tree:
        """Restores the leaves of `target`, compared with `stored` before and after."""
        target = jax.tree.map(_abstract, target)
        if differences := differing(stored, describe(target)):
            raise ReslabError(
                f"the checkpoint of step {step} holds other parameters than the "
                f"config asks for: {'; '.join(differences[:3])}"
                + (f"; and {len(differences) - 3} more" * (len(differences) > 3)),
                hint="the config that the run was started with",
            )
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        with self._together(step):
            state = self._load(step, state=arguments)["state"]
        found, infinite = examine(state)
        restored = describe(state, found)
        if wrong := [name for name in stored if restored[name] != stored[name]]:
            raise self._damaged(
                step, f"other bits in {', '.join(wrong[:3])} ({len(wrong)} in all)"
            )
        if infinite:  # Saved by an older version.
            what = f"values that are not finite in {', '.join(infinite[:3])}"
            raise self._damaged(step, f"{what} ({len(infinite)} in all)")
        return state

    @contextlib.contextmanager
    def _together(self, step: int) -> Iterator[None]:
        """Raises damage found by one process in all of them."""
        found = None
        try:
            yield
        except DamagedCheckpoint as error:
            found = error
        if not agree(found is None):
            raise found or self._damaged(step, "files that another process cannot read")

    def _load(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
        with quiet():
            try:
                return self._manager.restore(step, args=ocp.args.Composite(**items))
            except jax.errors.JaxRuntimeError:
                # The device failed, for example out of memory; the files are intact.
                raise
            except Exception as error:
                # Orbax has no error type of its own: JSON, TensorStore, bare
                # exceptions.
                lines = str(error).splitlines() or [type(error).__name__]
            await_abandoned_reads()
        raise self._damaged(step, lines[0][:160])

    def _damaged(self, step: int, got: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"the checkpoint of step {step} in {self._path} is damaged",
            got=got,
            hint=f"move the folder {step} away to resume from the step before",
        )


def _uncompressed() -> ocp.handlers.CheckpointHandlerRegistry:
    """Handlers that write leaves as they are."""
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    leaves = ocp.PyTreeCheckpointHandler(use_compression=False)
    for argument in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        handlers.add("state", argument, leaves)
    return handlers


def _lacks_optimizer(stored: Mapping[str, Any], target: Tree) -> bool:
    """Returns whether a train state with an optimizer was saved without it."""
    wanted = jax.tree.leaves(getattr(target, "opt_state", ()))
    return bool(wanted) and not any(name.startswith("opt_state/") for name in stored)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
