"""Rotary positions in a `config.json`: of two dialects, perhaps by kind of layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from reslab.core.errors import ReslabError
from reslab.interop.base.design import Of, Spec

# Their names of our arguments, by kind of scaling.
_NAMES = {
    "none": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low": "low_freq_factor",
        "high": "high_freq_factor",
        "original_length": "original_max_position_embeddings",
    },
}
_DEFAULTS = {"factor": 1.0, "low": 1.0, "high": 4.0, "original_length": 8192}
# Fields of a config that are read here.
FIELDS = ("rope_parameters", "rope_theta", "rope_scaling", "rope_local_base_freq")
FIELDS += ("partial_rotary_factor",)


def rope(kind: str = "", **arguments: Any) -> Spec:
    """The template of `rope`, for a kind of layers where they differ."""
    names = ("base", "fraction", "scaling", *_DEFAULTS)
    given = {one: Of(f"rope{kind}.{one}") for one in names} | arguments
    return Spec("positions", "rope", given)


def read(
    config: Mapping[str, Any],
    kinds: Sequence[str] = (),
    theta: Mapping[str, float] | float = 10_000.0,
    fraction: float = 1.0,
) -> dict[str, Any]:
    """Reads the rotary positions of a config, of either dialect.

    Args:
      config: Content of `config.json`: `rope_parameters`, or `rope_theta`,
        `rope_scaling` and, of sliding layers, `rope_local_base_freq`.
      kinds: Kinds of layers that have rotations of their own; () is one for all.
      theta: The base where none is given, by kind if they differ.
      fraction: The share of a head that is rotated where none is given.

    Returns:
      The values of the template's fields.

    Raises:
      ReslabError: If a scaling is not supported, or both dialects say something.
    """
    given = config.get("rope_parameters")
    older = config.get("rope_scaling")
    if given is not None and older not in (None, given):
        raise ReslabError(
            "config.json: rope_scaling",
            expected="rope_parameters alone, or without them",
            got="another rotation beside them",
            hint="leave one of the two",
        )
    found: dict[str, Any] = {}
    for kind in kinds or ("",):
        default = theta if isinstance(theta, float) else theta[kind]
        if given is not None:
            where, one = "rope_parameters", given.get(kind) if kinds else given
            one = _mapping(where, {} if one is None else one)
        else:
            where = "rope_scaling"
            is_local = kind == "sliding_attention"
            local = config.get("rope_local_base_freq") if is_local else None
            scaling = config.get("rope_scaling") or {}
            one = {} if is_local else _mapping(where, scaling)
            base = config.get("rope_theta") if local is None else local
            # Local layers with a default of their own keep it.
            if is_local and local is None and not isinstance(theta, float):
                base = default
            one = {"rope_theta": default if base is None else base, **one}
        share = config.get("partial_rotary_factor")
        share = fraction if share is None else share
        one = {"partial_rotary_factor": share, **one}
        for key, value in _arguments(where, one, default).items():
            found[f"rope{kind}.{key}"] = value
    return found


def _mapping(where: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ReslabError(f"config.json: {where}", expected="an object", got=f"{given}")
    return dict(given)


def _arguments(where: str, given: dict[str, Any], theta: float) -> dict[str, Any]:
    one = dict(given)
    kind = one.pop("rope_type", None) or one.pop("type", None) or "default"
    one.pop("type", None)
    scaling = "none" if kind == "default" else kind
    if scaling not in _NAMES:
        raise ReslabError(
            f"config.json: {where}: rope_type is not supported",
            expected="'default', 'linear' or 'llama3'",
            got=repr(kind),
        )
    base, fraction = one.pop("rope_theta", None), one.pop("partial_rotary_factor", None)
    found: dict[str, Any] = {
        "base": theta if base is None else base,
        "scaling": scaling,
        "fraction": 1.0 if fraction is None else fraction,
    }
    for ours, theirs in _NAMES[scaling].items():
        found[ours] = one.pop(theirs, None)
    for name, value in one.items():
        if value is not None:
            raise ReslabError(
                f"config.json: {where}: {name} is not supported", got=repr(value)
            )
    for key, value in found.items():
        if key != "scaling" and not (type(value) in (int, float) and value > 0):
            name = _NAMES[scaling].get(key, {"base": "rope_theta"}.get(key, key))
            raise ReslabError(
                f"config.json: {where}: {name}",
                expected="a number above 0",
                got=repr(value),
            )
    integers = {"original_length": int(found.get("original_length") or 8192)}
    floats = {
        key: float(value)
        for key, value in found.items()
        if key not in ("scaling", "original_length")
    }
    return {**_DEFAULTS, "scaling": scaling, **floats, **integers}


def write(
    found: Mapping[str, Any], kinds: Sequence[str] = (), fraction: float = 1.0
) -> dict[str, Any]:
    """Writes `rope_parameters`: the inverse of `read`, of the fields that are known."""
    written: dict[str, Any] = {}
    for kind in kinds or ("",):
        one = f"rope{kind}."
        if f"{one}scaling" not in found:
            continue  # No layer of this kind.
        scaling = found[f"{one}scaling"]
        parameters = {
            "rope_type": "default" if scaling == "none" else scaling,
            "rope_theta": found[f"{one}base"],
        }
        for ours, theirs in _NAMES[scaling].items():
            parameters[theirs] = found[one + ours]
        if {found[f"{one}fraction"], fraction} != {1}:
            parameters["partial_rotary_factor"] = found[f"{one}fraction"]
        written[kind] = parameters
    return {"rope_parameters": written if kinds else written.get("", {})}
