"""Configs: a schema with defaults, typed overrides, canonical JSON.

`configs/base.py` is the whole schema. A config file is Python with a
`get_config()`; a recorded config is JSON and is read as data, never executed.
"""

import contextlib
import difflib
import hashlib
import json
import math
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from reslab.core import foreign, imports, registry
from reslab.core.errors import ReslabError, nearest
from reslab.core.literals import check_plain, literal
from reslab.core.records import parse_record

# Fields that name one variant, or a sequence of them tiled over depth.
_TILED = frozenset(f"model.{f}" for f in ("mixer", "ffn", "norm", "placement", "block"))


def load(name: str) -> ConfigDict:
    """Loads a config by file path, or by name from the configs of reslab.

    Args:
      name: A path such as `configs/tiny.py`, or a name such as `tiny`.

    Returns:
      The config, open for changes to its values.

    Raises:
      ReslabError: If there is no such file, or it cannot be executed.
    """
    path = _find(name)
    config = call_in_file(f"config {name}", path, "get_config")
    if not isinstance(config, ConfigDict):
        raise ReslabError(
            f"config {name}: get_config()",
            expected="a ConfigDict",
            got=type(config).__name__,
        )
    if path.name == "base.py" and path.parent in folders():
        return config
    try:
        return update(load("base"), flatten(config))
    except ReslabError as error:
        raise ReslabError(f"config {name}: {error}") from None


def call_in_file(what: str, path: pathlib.Path, function: str, *arguments: Any) -> Any:
    """Executes a Python file, with all that Python can do, and calls a function of it.

    Args:
      what: What to call the file in errors.
      path: The file.
      function: The function's name.
      *arguments: Its arguments.

    Returns:
      What it returns.

    Raises:
      ReslabError: If the file cannot be executed or has no such function.
    """
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}

    def execute() -> Any:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        exec(code, namespace)
        if function not in namespace:
            raise ReslabError(what, expected=f"a function {function}()")
        return namespace[function](*arguments)

    folder = path.resolve().parent
    if folder in folders():
        return foreign.call(what, path, execute)
    sys.path.append(str(folder))  # Files beside it can be imported, after all else.
    try:
        with imports.from_working_directory():
            return foreign.call(what, path, execute)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def folders() -> list[pathlib.Path]:
    """Folders in which configs are found by name: installed, or in the checkout."""
    package = pathlib.Path(__file__).resolve().parent.parent
    candidates = [package / "configs", package.parent / "configs"]
    return [folder for folder in candidates if (folder / "base.py").is_file()]


def _find(name: str) -> pathlib.Path:
    path = pathlib.Path(name)
    if path.suffix == ".py" and path.is_file():
        return path.resolve()
    # Shipped configs are found by name, and by the path they have in a checkout.
    is_shipped = path.parent in (pathlib.Path("."), pathlib.Path("configs"))
    for folder in folders() if is_shipped else ():
        candidate = folder / f"{path.name.removesuffix('.py')}.py"
        if candidate.is_file():
            return candidate
    known = {p.stem for folder in folders() for p in folder.glob("*.py")}
    raise ReslabError(f"no config {name!r}", hint=nearest(path.stem, known))


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields `(dotted name, value)` for every field, in order of name."""
    for key in sorted(config):
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def parse_override(text: str) -> tuple[str, Any]:
    """Parses `model.depth=8`: the value is a Python literal, or a string.

    Raises:
      ReslabError: If there is no `=`.

    >>> parse_override("model.norm=layer(use_bias=False)")
    ('model.norm', 'layer(use_bias=False)')
    >>> parse_override("model.depth=8")
    ('model.depth', 8)
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ReslabError("--set", expected="field=value", got=repr(text))
    try:
        return key.strip(), literal(value)
    except ValueError:
        words = {"true": True, "false": False}
        return key.strip(), words.get(value.strip().lower(), value.strip())


def update(config: ConfigDict, overrides: Iterable[tuple[str, Any]]) -> ConfigDict:
    """Sets fields by dotted name, each checked against the type of its default.

    Args:
      config: The config to change.
      overrides: Pairs of a dotted name and a value.

    Returns:
      The same config.

    Raises:
      ReslabError: On an unknown field or a value of the wrong type.
    """
    known = dict(flatten(config))
    for key, value in overrides:
        if key not in known:
            if any(name.startswith(key + ".") for name in known):
                raise ReslabError(
                    f"{key!r} is a group of fields",
                    hint=", ".join(k for k in known if k.startswith(key + ".")),
                )
            raise ReslabError(f"unknown field {key!r}", hint=_nearest_field(key, known))
        node = config
        *path, leaf = key.split(".")
        for part in path:
            node = node[part]
        node[leaf] = known[key] = _coerce(key, known[key], value)
    return config


def _nearest_field(key: str, known: Iterable[str]) -> str:
    """The field that was probably meant, by its whole name or its last part."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not close:
        last = key.rpartition(".")[2]
        close = [name for name in known if name.rpartition(".")[2] == last]
    listing = "`reslab show base` lists the fields"
    return f"{close[0]} ({listing})" if close else listing


def _coerce(key: str, default: Any, value: Any) -> Any:
    try:
        check_plain(value)
    except ValueError as error:
        raise ReslabError(
            key, expected=type(default).__name__, got=str(error)
        ) from None
    if key in _TILED and isinstance(value, list | tuple):
        if not value or not all(isinstance(item, str) for item in value):
            raise ReslabError(key, expected="spec strings", got=repr(value))
        return tuple(value)
    if key in _TILED:
        default = ""
    if isinstance(default, bool) or not isinstance(default, int | float):
        is_right = type(value) is type(default)
    elif isinstance(default, float):
        is_right = type(value) in (int, float) and math.isfinite(value)
    else:
        is_right = type(value) is int
    if isinstance(default, tuple) and isinstance(value, list):
        return _as_tuples(value)
    if not is_right:
        raise ReslabError(key, expected=type(default).__name__, got=f"{value!r}")
    return float(value) if isinstance(default, float) else _as_tuples(value)


def _as_tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_as_tuples(item) for item in value)
    return value


def canonical_json(config: ConfigDict) -> str:
    """The config as JSON, the same text for the same values."""
    return json.dumps(dict(flatten(config)), sort_keys=True, indent=1, allow_nan=False)


def sha256(config: ConfigDict) -> str:
    """The digest of the canonical JSON: equal for equal configs only."""
    return sha256_of_text(canonical_json(config))


def sha256_of_text(text: str) -> str:
    """The digest of a config's canonical JSON, as it was written."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def from_json(text: str | bytes, where: str, *, is_inert: bool = False) -> ConfigDict:
    """Rebuilds a config from its JSON, as data, through the same typed checks.

    Fields that the version which wrote it did not have get the value that says what
    it did. Modules outside reslab that it names must have been allowed.

    Args:
      text: The JSON.
      where: What to call it in errors.
      is_inert: Whether the config is only compared or shown, so that nothing it names
        is imported and anything may be named.

    Returns:
      The config.

    Raises:
      ReslabError: If it is not JSON, has an unknown key, misses one, or names a module
        that has not been allowed.
    """
    fields = parse_record(text, where)
    config = load("base")
    fields = _SINCE | fields
    missing = sorted(set(dict(flatten(config))) - set(fields))
    if missing:
        raise ReslabError(
            f"{where} has no field {missing[0]!r}",
            hint="it was written by another version of reslab",
        )
    try:
        update(config, fields.items())
    except ReslabError as error:
        raise ReslabError(f"{where}: {error}") from None
    for field, module in () if is_inert else outside(dict(flatten(config))):
        imports.check_data(f"{where}: {field}", module)
    return config


# Fields that came after the first version, with what the versions before them did.
_SINCE = {
    "data.replay": 0.0,
    "mesh.dcn_data": 1,
    "mesh.sequence": 1,
    "model.dropout": 0.0,
    "model.embedding_dropout": 0.0,
    "model.kernels": "auto",
    "model.name": "lm",
    "model.use_embedding_projection": False,
    "model.use_head_bias": False,
    "train.orthogonality": 0.0,
    "probes.every": 0,
    "probes.names": [],
    "probes.batch": 8,
    "train.continue_from": "",
    "train.log_layers": False,
    "train.keep_every": 0,
    "train.on_bad_step": "halt",
}


def differences(one: ConfigDict, other: ConfigDict) -> list[str]:
    """Names the fields in which two configs differ."""
    a, b = dict(flatten(one)), dict(flatten(other))
    return [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


# The family of the specs in a field; that of `data.source` depends on the model.
_FAMILIES = {
    "model.name": "models",
    "model.mixer": "mixers",
    "model.ffn": "ffns",
    "model.norm": "norms",
    "model.placement": "placements",
    "model.block": "blocks",
    "model.residual": "residuals",
    "model.stack": "stacks",
    "model.linear": "linears",
    "model.position": "positions",
    "optim.name": "optimizers",
    "optim.schedule": "schedules",
    "data.tokenizer": "tokenizers",
    "train.writers": "writers",
    "probes.names": "probes",
}


def outside(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields `(field, module)` for every module outside reslab that a config names.

    Args:
      fields: Values by dotted name; some of a config's fields, or all of them.
    """
    for field, value in fields.items():
        if field == "optim.groups":
            value = [text for group in value for text in _specs_of(group)]
        elif field not in (*_FAMILIES, "data.source"):
            continue
        for module in registry.outside(value):
            yield field, module


def _specs_of(group: Any) -> list[str]:
    """The specs in one of `optim.groups`; its pattern is not one."""
    options = group[1] if isinstance(group, list | tuple) and len(group) == 2 else None
    values = options.values() if isinstance(options, Mapping) else ()
    return [value for value in values if isinstance(value, str)]


def check(config: ConfigDict) -> None:
    """Checks what can be checked before any device is touched.

    Raises:
      ReslabError: If a spec cannot be resolved or a size is out of range.
    """
    fields = dict(flatten(config))
    for key, family in _FAMILIES.items():
        specs = fields[key] if isinstance(fields[key], tuple) else (fields[key],)
        for spec in specs:
            registry.factory(family, spec)
    model = registry.module("models", registry.parse(fields["model.name"]).name).build
    is_text = getattr(model, "task", "language") == "language"
    registry.factory("sources" if is_text else "images", fields["data.source"])
    for key, choices in _CHOICES.items():
        if fields[key] not in choices:
            raise ReslabError(
                f"{key}: unknown choice {fields[key]!r}",
                hint=nearest(fields[key], choices),
            )
    for least, keys in ((1, _AT_LEAST_ONE), (0, _AT_LEAST_ZERO)):
        for key in keys:
            if fields[key] < least:
                raise ReslabError(
                    key, expected=f"at least {least}", got=str(fields[key])
                )
    for key, most in _AT_MOST.items():
        if fields[key] > most:
            raise ReslabError(key, expected=f"at most {most:,}", got=f"{fields[key]:,}")
    if not 0 <= fields["data.replay"] < 1:
        raise ReslabError(
            "data.replay",
            expected="at least 0 and below 1",
            got=str(fields["data.replay"]),
        )
    if fields["data.replay"] and not fields["train.continue_from"]:
        raise ReslabError(
            "data.replay",
            expected="a run to continue from, whose text is replayed",
            hint="--continue-from RUN",
        )
    if fields["seed"] >= 2**32:
        raise ReslabError("seed", expected="below 2**32", got=str(fields["seed"]))
    if fields["data.batch"] % fields["train.accumulate"]:
        raise ReslabError(
            "train.accumulate",
            expected=f"a divisor of data.batch ({fields['data.batch']})",
            got=str(fields["train.accumulate"]),
        )


_CHOICES = {
    "model.layers": ("auto", "scan", "unroll"),
    "model.remat": ("none", "dots", "full"),
    "precision.parameters": ("float32", "bfloat16", "float64"),
    "precision.compute": ("auto", "float32", "bfloat16", "float64"),
}
# Beyond these, work before the first step would have no end.
_AT_MOST = {
    "model.depth": 2**14,
    "data.length": 2**31 - 1,
    "data.workers": 2**10,
    "train.accumulate": 2**20,
    "mesh.cpu_devices": 2**10,
}
_AT_LEAST_ONE = (
    "model.features",
    "model.depth",
    "model.vocabulary_multiple",
    "data.length",
    "data.batch",
    "train.steps",
    "train.accumulate",
    "train.log_every",
    "train.checkpoint_every",
    "train.eval_every",
    "train.keep_checkpoints",
    "eval.batch",
    "eval.batches",
    "mesh.dcn_data",
    "mesh.cpu_devices",
    "probes.batch",
)
_AT_LEAST_ZERO = (
    "seed",
    "model.vocabulary_chunks",
    "model.embedding_std",
    "model.init_std",
    "data.workers",
    "optim.clip",
    "optim.learning_rate",
    "optim.weight_decay",
    "train.z_loss",
    "train.orthogonality",
    "train.keep_every",
    "probes.every",
)
