"""Configs: a schema with defaults, typed overrides, canonical JSON.

`configs/base.py` is the whole schema. A config file is Python with a
`get_config()`; a recorded config is JSON and is read as data, never executed.
"""

import difflib
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from reslab.core import imports, own, registry
from reslab.core.config_files import call_in_file, find, folders
from reslab.core.errors import ReslabError, nearest
from reslab.core.literals import check_plain, literal
from reslab.core.notices import warn
from reslab.core.records import parse_record
from reslab.core.schema import ALWAYS, GROUP_FAMILIES, Field, source_family


def load(name: str) -> ConfigDict:
    """Loads a config by file path, or by name from the configs of reslab.

    Args:
      name: A path such as `configs/tiny.py`, or a name such as `tiny`; with `:SIZE`
        after it, `get_config(SIZE)` is called.

    Returns:
      The config; its values may be changed, but no field may be added.

    Raises:
      ReslabError: If there is no such file, or it cannot be executed.
    """
    path, sizes = find(name)
    config = call_in_file(f"config {name}", path, "get_config", *sizes)
    if not isinstance(config, ConfigDict):
        raise ReslabError(
            f"config {name}: get_config()",
            expected="a ConfigDict",
            got=type(config).__name__,
        )
    if path.name == "base.py" and path.parent in folders():
        return _defaults(config).lock()
    try:
        return update(load("base"), flatten(config))
    except ReslabError as error:
        raise ReslabError(f"config {name}: {error}") from None


@functools.cache
def schema() -> Mapping[str, Field]:
    """The fields of `configs/base.py`, by dotted name."""
    path, _ = find("base")
    config = call_in_file("config base", path, "get_config")
    return {
        name: field if isinstance(field, Field) else Field(field)
        for name, field in flatten(config)
    }


def _defaults(config: ConfigDict) -> ConfigDict:
    for key, field in config.items():
        if isinstance(field, ConfigDict):
            _defaults(field)
        elif isinstance(field, Field):
            config[key] = field.default
    return config


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
            now = [name for name, field in schema().items() if field.was == key]
            hint = now[0] if now else _nearest_field(key, known)
            raise ReslabError(f"unknown field {key!r}", hint=hint)
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
    is_tiled = schema()[key].is_tiled
    if is_tiled and isinstance(value, list | tuple):
        if not value or not all(isinstance(item, str) for item in value):
            raise ReslabError(key, expected="spec strings", got=repr(value))
        return tuple(value)
    if is_tiled:
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


def digest(config: ConfigDict) -> str:
    """The digest of the config and of the parts outside reslab that it names."""
    return combined(sha256(config), own.digests(modules(config)))


def combined(sha256: str, parts: Mapping[str, str]) -> str:
    """The digest of a config together with those of parts outside reslab.

    Args:
      sha256: Digest of the config, which is returned where there are no parts.
      parts: Digest of each part's file, by name.
    """
    if not parts:
        return sha256
    lines = [sha256, *(f"{name} {one}" for name, one in sorted(parts.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
    fields = renamed(parse_record(text, where), where)
    config = load("base")
    added = {k: f.since for k, f in schema().items() if f.since is not ALWAYS}
    fields = added | fields
    missing = sorted(set(dict(flatten(config))) - set(fields))
    if missing:
        hint = "it was written by another version of reslab"
        if "model_type" in fields:
            hint = "`reslab import`: it is a checkpoint's config, not a run's"
        raise ReslabError(f"{where} has no field {missing[0]!r}", hint=hint)
    try:
        update(config, fields.items())
    except ReslabError as error:
        raise ReslabError(f"{where}: {error}") from None
    for field, module in () if is_inert else outside(dict(flatten(config))):
        imports.check_data(f"{where}: {field}", module)
    return config


def renamed(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the fields of a recorded config by their present names.

    Args:
      fields: Values by dotted name.
      where: Name of the record, for the warning about an earlier name.
    """
    names = {field.was: name for name, field in schema().items() if field.was}
    for old in names.keys() & fields.keys():
        told = f"{where}: field {old!r} is now {names[old]!r}"
        warn(told, FutureWarning)
    return {names.get(name, name): value for name, value in fields.items()}


def differences(one: ConfigDict, other: ConfigDict) -> list[str]:
    """Names the fields in which two configs differ."""
    a, b = dict(flatten(one)), dict(flatten(other))
    return [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def outside(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields `(field, module)` for every module outside reslab that a config names.

    Args:
      fields: Values by dotted name; some of a config's fields, or all of them.
    """
    for field, value in fields.items():
        for family, spec in _specs(field, value):
            for module in registry.outside(family, spec) if family else ():
                yield field, module


def modules(config: ConfigDict) -> list[str]:
    """Names the modules outside reslab that a config names, in order."""
    return sorted({module for _, module in outside(dict(flatten(config)))})


def _specs(field: str, value: Any) -> list[tuple[str, Any]]:
    """Families and specs in a field; the patterns of groups are not specs."""
    if field == "optim.groups":
        groups = [g[1] for g in value if isinstance(g, list | tuple) and len(g) == 2]
        options = [o for g in groups if isinstance(g, Mapping) for o in g.items()]
        return [(GROUP_FAMILIES.get(key, ""), spec) for key, spec in options]
    known = schema().get(field)
    return [(known.family if known else "", value)]


def check(config: ConfigDict) -> None:
    """Checks what can be checked before any device is touched.

    Raises:
      ReslabError: If a spec cannot be resolved or a size is out of range.
    """
    fields: dict[str, Any] = dict(flatten(config))
    sources = source_family(fields["model.name"], fields["train.task"])
    for key, field in schema().items():
        value = fields[key]
        if field.family:
            family = field.family
            if family == "sources":
                family = sources
            for spec in value if isinstance(value, tuple) else (value,):
                registry.factory(family, spec)
        if field.bounds:
            field.bounds.check(key, value)
        if field.choices and value not in field.choices:
            raise ReslabError(
                f"{key}: unknown choice {value!r}", hint=nearest(value, field.choices)
            )
    if fields["data.replay"] and not fields["train.continue_from"]:
        raise ReslabError(
            "data.replay",
            expected="a run to continue from, whose text is replayed",
            hint="--continue-from RUN",
        )
    if fields["data.batch"] % fields["train.accumulate"]:
        raise ReslabError(
            "train.accumulate",
            expected=f"a divisor of data.batch ({fields['data.batch']})",
            got=str(fields["train.accumulate"]),
        )
