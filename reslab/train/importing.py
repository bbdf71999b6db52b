"""A run made of a checkpoint of another library."""

import concurrent.futures
import dataclasses
import math
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import registry
from reslab.core.errors import ReslabError, nearest
from reslab.interop.base import tokens
from reslab.interop.base.family import Family, family_of, model_fields
from reslab.interop.base.files import DTYPES, Source, write_bytes, write_json
from reslab.interop.base.tensors import Tensor
from reslab.parallel.mesh import make_mesh
from reslab.runtime.files import whole_directory
from reslab.train import kept
from reslab.train.checkpoint import Checkpoints, NotFinite
from reslab.train.loop import describe
from reslab.train.memory import check_memory
from reslab.train.placing import expected_tensors, placed
from reslab.train.run import Run
from reslab.train.state import Setup, TrainState, make_setup

# Tokens in a window where the model could take longer ones.
_LONGEST = 1024


@dataclasses.dataclass(frozen=True)
class Imported:
    """A checkpoint as reslab sees it, before its tensors are read.

    Attributes:
      source: The checkpoint.
      family: Its family.
      fields: Fields of the config that it sets.
      length: The longest sequence that it was made for, which may be infinite.
    """

    source: Source
    family: Family
    fields: dict[str, Any]
    length: float


def understood(path: str | pathlib.Path, folder: str = "") -> Imported:
    """Reads what a checkpoint is; of its tensors, only names and shapes.

    Args:
      path: The directory.
      folder: Where its tokenizer will be; "" leaves it there.

    Raises:
      ReslabError: If it is not supported.
    """
    source = Source(path)
    family = family_of(source.config)
    known = family.known(source.config)
    filled = family.fill(known)
    vocabulary = filled["vocabulary_size"]
    place = pathlib.Path(folder) if folder else source.directory.absolute()
    length = known[family.length] if family.length else math.inf
    spec = tokens.tokenizer(source, place, vocabulary)
    fields = {
        **model_fields(filled),
        "data.tokenizer": spec,
        "data.length": int(min(length, _LONGEST)),
        "data.batch": 8,
        "eval.batch": 8,
        "optim.learning_rate": 2e-5,
        "precision.parameters": _dtype(source),
    }
    parsed = registry.parse(spec)
    if parsed.name == "ids":  # Text would need a tokenizer.
        fields["data.source"] = registry.spec_text("numbers", parsed.arguments)
    return Imported(source, family, fields, length)


def _dtype(source: Source) -> str:
    """The dtype that holds every tensor; float64 is rounded."""
    stored = {one.dtype for one in source.tensors.values()}
    for name, one in source.tensors.items():
        if one.dtype not in DTYPES:
            raise ReslabError(
                f"{one.path}: {name}",
                expected=f"one of {', '.join(DTYPES)}",
                got=one.dtype,
            )
    return "bfloat16" if stored == {"BF16"} else "float32"


def configured(found: Imported, changes: Iterable[tuple[str, Any]] = ()) -> ConfigDict:
    """The config of a checkpoint, with changes of one's own.

    Raises:
      ReslabError: If a change is of what the checkpoint decides.
    """
    config = configs.load("base")
    configs.update(config, found.fields.items())
    changes = list(changes)
    for key, _ in changes:
        if key.startswith("model.") and key in found.fields:
            raise ReslabError(
                f"--set {key}",
                expected="a field that the checkpoint does not decide",
                hint="reslab transform, once it is imported",
            )
    configs.update(config, changes)
    configs.check(config)
    return config


def divided_setup(config: ConfigDict, mesh: Mapping[str, int] | None = None) -> Setup:
    """A setup whose parameters are divided over devices, where they divide.

    Args:
      config: The config.
      mesh: Sizes of the axes of the mesh, of the first devices; all of them along
        `fsdp` if None.

    Raises:
      ReslabError: If a mesh has no such axis, or there are too few devices.
    """
    sizes = {"fsdp": -1} if mesh is None else mesh
    known = set(config.mesh) - {"cpu_devices"}
    for axis in sizes.keys() - known:
        raise ReslabError(f"mesh has no axis {axis!r}", hint=nearest(axis, known))
    count = math.prod(sizes.values())
    devices = jax.devices()[:count] if count > 0 else None
    try:
        return make_setup(config, make_mesh(sizes, devices))
    except ReslabError:
        if mesh is not None or len(jax.devices()) == 1:
            raise
    # All that is wrong but the mesh is found again.
    return make_setup(config, make_mesh({}, jax.devices()[:1]))


def import_run(
    path: str | pathlib.Path,
    out: str | pathlib.Path,
    changes: Iterable[tuple[str, Any]] = (),
) -> dict[str, Any]:
    """Makes a run of a checkpoint of another library.

    The run has one checkpoint, of step 0, without an optimizer's state: a training
    begins with a fresh one. `import.json` says where it comes from. The directory
    appears whole or not at all.

    Args:
      path: A directory with `config.json` and safetensors, sharded or not.
      out: Directory of the run, which must not be there.
      changes: Fields of the config to set, by dotted name.

    Returns:
      What `import.json` says.

    Raises:
      ReslabError: If the checkpoint is damaged or not supported, or `out` is taken.
    """
    out = pathlib.Path(out).absolute()
    changes = list(changes)
    if out.exists():
        raise ReslabError(f"{out}", expected="a new directory", got="one that is there")
    found = understood(path)
    setup = divided_setup(configured(found, changes))
    wanted = expected_tensors(found.source, found.family, setup)
    # The same, with its tokenizer where it will be: wherever the run is then.
    config = configured(understood(path, kept.FOLDER), changes)
    check_memory(setup, is_training=False)
    longest = found.length
    if config.data.length > longest:
        print(
            f"warning: data.length {config.data.length} is beyond the {longest} "
            "positions that the checkpoint was made for",
            file=sys.stderr,
        )
    about = describe(setup)
    with whole_directory(out) as directory:
        names = _keep(found, wanted, directory / kept.FOLDER)
        run = Run(directory)
        run.open(config, about)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            weights = pool.submit(found.source.digests)
            variables = placed(found.source, wanted, setup)
        params = variables.pop("params")
        state = TrainState(jnp.zeros((), jnp.int32), params, (), variables)
        with Checkpoints(
            run.checkpoints,
            is_async=False,
            is_compressed=False,
            identity=run.identity(about["corpus"]),
        ) as checkpoints:
            try:
                checkpoints.save(0, state, data_index=0, force=True)
            except NotFinite:
                _name_infinite(found.source, wanted)
                raise
            seal = checkpoints.seal(0)
        run.mark_checkpoints()
        record = {
            "source": str(found.source.directory.absolute()),
            "model_type": found.family.model_type,
            "files": names,
            "weights": weights.result(),
            "checkpoint_sha256": seal,
            "tensors": len(wanted),
            "parameters": about["parameters"],
            "dtype": config.precision.parameters,
            "dtypes": sorted({found.source.tensors[one.name].dtype for one in wanted}),
        }
        run.write("import.json", record)
    return record


def _name_infinite(source: Source, wanted: list[Tensor]) -> None:
    """Raises for the first tensor with NaN or infinities, by its name in the file."""
    for one in wanted:
        tensor = source.read(one.name).astype(np.float64)
        if wrong := tensor.size - np.count_nonzero(np.isfinite(tensor)):
            raise ReslabError(
                f"{source.tensors[one.name].path}: {one.name}",
                expected="finite values",
                got=f"{wrong:,} of {tensor.size:,} that are not",
            )


def _keep(
    found: Imported, wanted: list[Tensor], folder: pathlib.Path
) -> dict[str, str]:
    """Copies what is beside the tensors, and returns the sha256 of each file."""
    source = found.source
    folder.mkdir()
    names = ["config.json", *tokens.present(source)]
    digests = {
        name: write_bytes(folder / name, source.inside(name).read_bytes())
        for name in names
    }
    stored = {one.name: source.tensors[one.name].dtype for one in wanted}
    kinds = set(stored.values())
    is_prefixed = wanted[0].name.startswith(found.family.prefix)
    content = {
        "prefix": found.family.prefix if is_prefixed else "",
        "dtypes": kinds.pop() if len(kinds) == 1 else stored,
        "table": next(
            number
            for number, rows in enumerate(found.family.tables)
            if {one.row for one in wanted} <= {*rows}
        ),
    }
    return {**digests, kept.NAMES: write_json(folder / kept.NAMES, content)}
