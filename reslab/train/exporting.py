"""A checkpoint of a run, written as another library reads it."""

import hashlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.records import read_record
from reslab.interop.base import tokens
from reslab.interop.base.design import all_arguments
from reslab.interop.base.family import Family, closest
from reslab.interop.base.files import (
    DTYPES,
    LARGEST_SHARD,
    SEAL,
    Written,
    write_bytes,
    write_json,
    write_tensors,
)
from reslab.interop.base.sizes import resolved
from reslab.interop.base.tensors import Place, Tensor, tensors
from reslab.runtime.files import whole_directory
from reslab.train import kept
from reslab.train.checkpoint import Checkpoints
from reslab.train.importing import divided_setup
from reslab.train.placing import layout
from reslab.train.run import Run
from reslab.train.state import named_variables, restore_variables


def export_run(
    run: str | pathlib.Path,
    out: str | pathlib.Path,
    step: int | None = None,
    largest: int = LARGEST_SHARD,
) -> dict[str, Any]:
    """Writes a checkpoint of a run as another library reads it.

    Of a run that was imported and not changed, the files are those that it came from,
    tensor by tensor and bit by bit. `reslab.json` holds the digest of every file, which
    an import compares. The directory appears whole or not at all.

    Args:
      run: Directory of the run, which is only read.
      out: The new directory, which must not be there.
      step: Which checkpoint; the newest if None.
      largest: Bytes of a file of tensors.

    Returns:
      What `reslab.json` says.

    Raises:
      ReslabError: If no class of the library has the design of the run, or `out` is
        taken.
    """
    source, out = Run(pathlib.Path(run)), pathlib.Path(out)
    if out.exists():
        raise ReslabError(f"{out}", expected="a new directory", got="one that is there")
    config = source.config()
    setup = divided_setup(config)
    if registry.parse(config.model.name).name != "lm":
        raise ReslabError(
            f"export of {run}: model.name", expected="lm", got=repr(config.model.name)
        )
    folder = _kept(source, config)
    shapes, blocks = layout(setup)
    fields = dict(configs.flatten(config))
    wanted = resolved(fields, shapes, blocks)
    base = read_record(folder / "config.json") if folder else None
    family, described = closest(wanted, base, config.data.length)
    names = read_record(folder / kept.NAMES) if folder else {}
    if base is None or base.get("model_type") != family.model_type:
        names = {}
    with Checkpoints(
        source.checkpoints, is_read_only=True, identity=source.identity({})
    ) as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        variables = restore_variables(checkpoints, setup, step)
        assert step is not None
        seal = checkpoints.seal(step)
    prefix = names.get("prefix", family.prefix)
    rows = family.tables[names.get("table", 0)]
    found = tensors(rows, shapes, blocks, prefix)
    dtypes = names.get("dtypes", {}) if _is_imported(source, step) else {}
    writer = _Writer(named_variables(variables), family, wanted)
    with whole_directory(out) as directory:
        digests = {"config.json": write_json(directory / "config.json", described)}
        if folder and described == base:
            digests["config.json"] = _copy(folder, directory, "config.json")
        for name in tokens.FILES:
            if folder and (folder / name).is_file():
                digests[name] = _copy(folder, directory, name)
        digests |= write_tensors(
            directory, [writer(one, dtypes) for one in found], largest
        )
        about = {
            "run": source.recorded().get("id", ""),
            "step": step,
            "checkpoint_sha256": seal,
            "model_type": family.model_type,
            "tensors": len(found),
            "files": digests,
        }
        write_json(directory / SEAL, about)
    return about


def _is_imported(source: Run, step: int) -> bool:
    return step == 0 and (source.directory / "import.json").is_file()


def _copy(folder: pathlib.Path, directory: pathlib.Path, name: str) -> str:
    return write_bytes(directory / name, (folder / name).read_bytes())


def _kept(source: Run, config: ConfigDict) -> pathlib.Path | None:
    """The folder of files of the checkpoint that a run goes back to, if any."""
    spec = registry.parse(config.data.tokenizer)
    folders = [source.directory / kept.FOLDER]
    if spec.name == "huggingface":
        folders.append(pathlib.Path(spec.arguments.get("path", "")).parent)
    if config.train.continue_from:
        folders.append(pathlib.Path(config.train.continue_from) / kept.FOLDER)
    found = next((one for one in folders if (one / kept.NAMES).is_file()), None)
    if found and (found.parent / "import.json").is_file():
        _check_kept(found)
    return found


def _check_kept(folder: pathlib.Path) -> None:
    """Checks the files of an import against the digests that it recorded.

    Raises:
      ReslabError: If one was changed.
    """
    record = read_record(folder.parent / "import.json", {"files": {...: str}})
    for name, sha256 in record.get("files", {}).items():
        path = folder / name
        now = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "-"
        if now != sha256:
            raise ReslabError(
                f"{path} was changed since it was imported",
                expected=f"sha256 {sha256[:12]}",
                got=now[:12],
            )


class _Writer:
    """Makes tensors of parameters, each when it is written."""

    def __init__(
        self,
        leaves: Mapping[str, jax.Array],
        family: Family,
        design: Mapping[str, Any],
    ):
        self._leaves = leaves
        self._family = family
        self._design = design

    def __call__(self, one: Tensor, dtypes: Any) -> Written:
        """A tensor to write, in the dtype that it was read in or has now."""
        stored = dtypes if isinstance(dtypes, str) else dtypes.get(one.name)
        dtype = np.dtype(self._leaves[one.places[0].path].dtype)
        dtype = DTYPES[stored] if stored else dtype
        return Written(one.name, dtype, one.shape, lambda: self._make(one, dtype))

    def _make(self, one: Tensor, dtype: np.dtype) -> np.ndarray:
        parts = [np.asarray(jax.device_get(self._part(p, one))) for p in one.places]
        return one.form.write(parts).astype(dtype, copy=False)

    def _part(self, place: Place, one: Tensor) -> jax.Array:
        leaf = self._leaves[place.path]
        part = leaf[place.index]
        if part.shape != place.shape:  # Rows pad the vocabulary.
            part = part[tuple(map(slice, place.shape))]
        if offset := self._offset(place, one):
            part = part + jnp.asarray(offset, part.dtype)
        return part

    def _offset(self, place: Place, one: Tensor) -> int:
        """Returns their gain minus ours: 0, or 1 where one of them is an offset."""
        if not place.path.endswith("gain"):
            return 0
        theirs = one.row.stores_gain_offset
        theirs = self._family.stores_gain_offset if theirs is None else theirs
        return int(self._is_offset(place.path, one.layer)) - int(theirs)

    def _is_offset(self, path: str, layer: int | None) -> bool:
        """Returns whether a gain of ours is stored as an offset from one."""
        number = -1 if layer is None else layer
        spec = self._design["norm"][number]
        if of_mixer := re.search(r"mixer/(?:(\w+_norm)/)?gain$", path):
            arguments = all_arguments("mixers", self._design["mixer"][number])
            if of_mixer[1] is None:
                return arguments["is_gain_offset"]
            names = (of_mixer[1], "qk_norm", "latent_norm")
            spec = next(arguments[name] for name in names if arguments.get(name))
        return all_arguments("norms", spec)["is_gain_offset"]
