"""The run directory: what a run was asked to do, and everything it wrote."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import own
from reslab.core.errors import ReslabError
from reslab.core.records import Form, read_record
from reslab.runtime.files import make_directory, write_whole
from reslab.runtime.inside import check_links, open_inside
from reslab.runtime.storage import local_path, storage_error, storage_errors
from reslab.train import changes, identity, kept, parts

# Files that a run writes; its config marks them as its own.
_WRITTEN = ("run.json", "metrics.jsonl", "result.json", "probes.jsonl", "layers.jsonl")
# Fields of run.json that are read by name.
_FORM: Form = {
    "config_sha256": str,
    "changes": [changes.FORM],
    "continued_from": {"step": int, "sha256": str},
    "corpus": {key: (None, str) for key in identity.DATA.values()},
    "ended": {...: str},
    "environment": {"versions": {}},
    "id": str,
    "memory": {...: float},
    "mesh": {},
    "parameters": int,
    "parts": {...: str},
    "training_flops_per_token": int,
}


class InUse(ReslabError):
    """Another process has the run directory."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory.

    It holds `config.json` (the resolved config, canonical), `run.json` (a random id,
    the config's digest, versions, devices, mesh, corpus, command line, digests of what
    it came to), `metrics.jsonl`, `checkpoints/` and, when the run has ended,
    `result.json`.

    Attributes:
      directory: The directory.
    """

    directory: pathlib.Path

    def __post_init__(self) -> None:
        local = local_path(self.directory, "run directory")
        object.__setattr__(self, "directory", local)

    @property
    def checkpoints(self) -> pathlib.Path:
        """Directory of the checkpoints."""
        return self.directory / "checkpoints"

    def config(self, *, is_inert: bool = False) -> ConfigDict:
        """Reads the recorded config, as data.

        Args:
          is_inert: Whether it is only compared or shown, as in `configs.from_json`.

        Raises:
          ReslabError: If this is no run directory or its config was damaged.
        """
        path = self.directory / "config.json"
        if not path.is_file():
            raise ReslabError(
                f"{self.directory}", expected="a run directory", got="no config.json"
            )
        text = path.read_bytes()
        config = configs.from_json(text, str(path), is_inert=is_inert)
        if (self.directory / "run.json").is_file():
            # Digest of the text, not the config: older versions had fewer fields.
            record = self.record()
            changes.check(record, text, self.directory / "run.json")
            recorded = self._configs(record)
            if configs.sha256_of_text(text.decode()) not in recorded:
                raise ReslabError(
                    f"{path} was changed since the run began",
                    expected=f"sha256 {str(recorded[0])[:12]}",
                    got=configs.sha256_of_text(text.decode())[:12],
                    hint="train a new run with --config or --set",
                )
        kept.find_tokenizer(config, self.directory)
        return config

    def record(self) -> dict[str, Any]:
        """Reads `run.json`."""
        return read_record(self.directory / "run.json", _FORM)

    @staticmethod
    def _configs(record: Mapping[str, Any]) -> list[str | None]:
        """Digests of the config, and of those before a change of it."""
        earlier = [change.get("config_sha256") for change in record.get("changes", [])]
        return [record.get("config_sha256"), *earlier]

    def recorded(self) -> dict[str, Any]:
        """Reads `run.json`; empty if it is missing."""
        return self.record() if (self.directory / "run.json").is_file() else {}

    def result(self) -> dict[str, Any] | None:
        """Reads `result.json`; None while the run has not ended.

        Raises:
          ReslabError: If it, or the metrics and probe results that it seals, are not
            those that the run ended with. Runs that an older version ended have no
            digests: there it must be of the config's last step.
        """
        path = self.directory / "result.json"
        planned = self.directory / "config.json"
        if not (path.is_file() and planned.is_file()):
            return None
        found = read_record(path, {...: float})
        steps = read_record(planned).get("train.steps")
        if found.get("step") != steps:
            raise ReslabError(
                f"{path}: step",
                expected=f"{steps}, the last of the run",
                got=str(found.get("step")),
                hint="remove it and train again: the run continues to its end",
            )
        self._check_ended()
        return found

    def _check_ended(self) -> None:
        """Checks the files of a run that has ended against the digests in `run.json`.

        Raises:
          ReslabError: If one was changed, or the run has not ended.
        """
        ended = self.recorded().get("ended")
        if ended == {}:
            raise ReslabError(
                f"{self.directory / 'result.json'} is not this run's",
                expected="none: the run has not ended",
                hint="remove it",
            )
        for name, sha256 in (ended or {}).items():
            path = self.directory / name
            now = "no such file"
            if name in _WRITTEN and path.is_file():
                with open(path, "rb") as file:
                    now = hashlib.file_digest(file, "sha256").hexdigest()
            if now != sha256:
                raise ReslabError(
                    f"{path} was changed since the run ended",
                    expected=f"sha256 {sha256[:12]}",
                    got=now[:12],
                    hint="restore it, or remove result.json and train again",
                )

    def end(self, result: Mapping[str, Any], lines: Mapping[str, str]) -> None:
        """Writes `result.json`, and before it the digests of all that it stands for.

        A kill between the two leaves a run that has not ended and can resume.

        Args:
          result: The last figures.
          lines: Digests of the run's line files, by file.
        """
        if record := self.recorded():
            text = hashlib.sha256(_text(result).encode()).hexdigest()
            self.write("run.json", record | {"ended": {**lines, "result.json": text}})
        self.write("result.json", result)

    def open(
        self, config: ConfigDict, about: Mapping[str, Any], patience: float = 0.0
    ) -> bool:
        """Creates the directory, or checks that it holds this very run.

        Args:
          config: The resolved config.
          about: Versions, devices, mesh and corpus, for `run.json`.
          patience: As `lock` takes it, for another process that begins the same run.

        Returns:
          Whether the run was there before.

        Raises:
          ReslabError: If the directory cannot be written, holds another config,
            checkpoints or records without one, was begun on other data, or a link in
            it leads out of it.
          InUse: If another process has it.
        """
        try:
            check_links(self.directory)
            if (self.directory / "config.json").is_file():
                self._check_same(config, about)
                return True
            self._check_foreign(config)
            make_directory(self.directory)
            with self.lock(patience):
                # Two processes may begin at once: the second continues the first one's
                # run.
                if (self.directory / "config.json").is_file():
                    self._check_same(config, about)
                    return True
                record = {
                    "id": secrets.token_hex(8),
                    "config_sha256": configs.sha256(config),
                    "command": shlex.join(["reslab", *sys.argv[1:]]),
                    "ended": {},
                    **about,
                }
                self.write("run.json", record)
                parts.keep(config, self.directory)
                # The config comes last: with it, the directory is a run.
                self.write_config(config)
        except OSError as error:
            raise storage_error(
                f"run directory {self.directory}",
                error,
                expected="a directory that can be written",
                hint="--run DIR",
            ) from None
        return False

    def undo(self) -> None:
        """Removes what `open` has written for a run that cannot begin."""
        shutil.rmtree(self.directory / parts.FOLDER, ignore_errors=True)
        for name in ("config.json", "run.json", "lock"):
            (self.directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Something else is in it.
            self.directory.rmdir()

    def _check_foreign(self, config: ConfigDict) -> None:
        """Checks that nothing in a directory without a config would be overwritten.

        Raises:
          ReslabError: If there are files that a run writes, but no run.
        """
        found = [name for name in _WRITTEN if (self.directory / name).exists()]
        if any(self.checkpoints.glob("[0-9]*")):
            found.append("checkpoints")
        # A kill before the config was written leaves only the record.
        is_own = found == ["run.json"] and self.recorded().get(
            "config_sha256"
        ) == configs.sha256(config)
        if found and not is_own:
            raise ReslabError(
                f"{self.directory} holds {' and '.join(found)} of an unknown run",
                expected=f"{self.directory / 'config.json'} beside them",
                hint="--run with another directory",
            )

    def _check_same(self, config: ConfigDict, about: Mapping[str, Any]) -> None:
        if not os.access(self.directory, os.W_OK):
            raise ReslabError(
                f"run directory {self.directory}",
                expected="a directory that can be written",
                got="no permission",
                hint="--run DIR",
            )
        is_under_way = (self.directory / "metrics.jsonl").is_file()
        result = self.result()
        is_finished = result is not None and result["step"] >= config.train.steps
        if is_under_way and not self._has_checkpoints() and not is_finished:
            raise ReslabError(
                f"{self.checkpoints} is gone",
                expected="the checkpoints of the run that is under way",
                hint="put them back, or --run with another directory",
            )
        changes.check_config(self, config)
        self.record()  # Training requires the run's record to continue.
        self.check_data(about["corpus"])
        identity.check_given(self.recorded().get("corpus", {}), about["corpus"])

    def last_step(self) -> int:
        """The newest step that has been saved; 0 for none."""
        found = self.checkpoints.glob("[0-9]*")
        return max((int(p.name) for p in found if p.name.isdigit()), default=0)

    def _has_checkpoints(self) -> bool:
        # A failed save may recreate the directory without its contents.
        return (self.checkpoints / "begun").is_file() or any(
            self.checkpoints.glob("[0-9]*/integrity")
        )

    def mark_checkpoints(self) -> None:
        """Marks the directory of the checkpoints, so that its loss is noticed."""
        expected = "a directory that can be written"
        with storage_errors(f"{self.checkpoints}", expected=expected):
            write_whole(self.checkpoints / "begun", "")

    def check_data(self, record: Mapping[str, Any]) -> None:
        """Checks that data are those the run was begun on.

        Args:
          record: As the task's `record` gives it, or the part that was read.

        Raises:
          ReslabError: If they are others.
        """
        began = identity.of_data(self.recorded().get("corpus", {}))
        identity.check_data(began, identity.of_data(record))

    def identity(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Returns the identity that a checkpoint of the run must have.

        Args:
          record: As `check_data` takes it, which is asked first.

        Returns:
          The run's id, digests of config and data, and the code that runs now.

        Raises:
          ReslabError: If the data are not those that the run was begun on.
        """
        self.check_data(record)
        text = (self.directory / "config.json").read_text()
        found = {"config": configs.sha256_of_text(text)}
        # Only imported parts: a config that is only shown may name others.
        named = configs.modules(self.config(is_inert=True))
        own_parts = own.digests(name for name in named if name in sys.modules)
        code = (f"{name} {digest[:12]}" for name, digest in own_parts.items())
        found["code"] = ", ".join([identity.of_code(), *code])
        began = self.recorded()
        if earlier := self._configs(began)[1:]:
            found["earlier"] = " ".join(map(str, earlier))
        # Runs begun by older versions have no id.
        if run := began.get("id"):
            found["run"] = run
        return found | identity.of_data(record)

    def pinned(self) -> dict[str, Any] | None:
        """The checkpoint of another run that this one began from, once it has begun."""
        return self.recorded().get("continued_from")

    @contextlib.contextmanager
    def lock(self, patience: float = 0.0) -> Iterator[None]:
        """Keeps the directory for this process until the end of the block.

        Args:
          patience: Seconds to wait for a process that has it.

        Raises:
          InUse: If a live process has it, still.
        """
        deadline = time.monotonic() + patience
        what = f"run directory {self.directory}: lock"
        with storage_errors(what, expected="a file that can be written"):
            file = open_inside(self.directory / "lock", "a+")
        with file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() < deadline:
                        time.sleep(0.1)
                        continue
                    file.seek(0)
                    raise InUse(
                        f"run directory {self.directory} is in use",
                        got=f"process {file.read().strip()}",
                        hint="wait for it, or --run with another directory",
                    ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def write_config(self, config: ConfigDict) -> None:
        """Writes `config.json`."""
        text = configs.canonical_json(config) + "\n"
        write_whole(self.directory / "config.json", text)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file of the run, whole or not at all."""
        write_whole(self.directory / name, _text(content))


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"


def default_directory(name: str, config: ConfigDict) -> pathlib.Path:
    """`runs/<name>-<digest>`: the same config, with the same parts, is the same run."""
    digest = configs.digest(config)
    return pathlib.Path("runs") / f"{name}-{digest[:8]}"
