"""A family of checkpoints: its table, read in both directions."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import reslab.interop
from reslab.core import config as configs
from reslab.core import registry
from reslab.core.errors import ReslabError, nearest
from reslab.interop.base import design, fields, rope
from reslab.interop.base.design import Of
from reslab.interop.base.tensors import Row

# Fields of our config that have a value for each layer.
LAYERED = ("mixer", "ffn", "norm", "placement", "block")
# The design of a decoder with plain layers; families say what differs.
PLAIN: Mapping[str, Any] = {
    "features": Of("hidden_size"),
    "depth": Of("num_hidden_layers"),
    "vocabulary_size": Of("vocab_size"),
    "tie_embeddings": Of("tie_word_embeddings"),
    "placement": "pre",
    "block": "standard",
    "residual": "plain",
    "stack": "uniform",
    "linear": "dense",
    "position": "none",
    "post_embedding_norm": "none",
    "embedding_scale": 1.0,
    "logit_softcap": 0.0,
    "use_head_bias": False,
    "use_embedding_projection": False,
}


def _unchanged(config: dict[str, Any]) -> dict[str, Any]:
    return config


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
      model_type: What `config.json` calls it.
      architecture: The class that reads it.
      fields: Fields of `config.json`.
      design: Templates of ours over these fields, by field of our config; a template
        of `LAYERED` holds for each layer.
      rows: The table of tensors.
      layouts: Tables of the same parameters, as other checkpoints store them.
      prefix: What the names of tensors begin with, but for the head; checkpoints of
        the model without a head leave it out.
      buffers: A regular expression of tensors that are no parameters.
      stores_gain_offset: Whether gains of norms are stored as offsets from one.
      rope_kinds: Kinds of layers that are rotated by angles of their own.
      rope_theta: Base of the rotation where none is given.
      rope_fraction: Share of a head that is rotated where none is given.
      read: Adds fields that the config means but does not name.
      write: Adds fields that the config needs beside those of the design.
      length: Field of the longest sequence; "" if the config has no such field.
    """

    model_type: str
    architecture: str
    fields: Mapping[str, fields.Known]
    design: Mapping[str, Any]
    rows: tuple[Row, ...]
    layouts: tuple[tuple[Row, ...], ...] = ()
    prefix: str = "model."
    buffers: str = r"rotary_emb\.inv_freq$"
    stores_gain_offset: bool = False
    rope_kinds: tuple[str, ...] = ()
    rope_theta: Mapping[str, float] | float = 10_000.0
    rope_fraction: float = 1.0
    has_rope: bool = True
    read: Callable[[dict[str, Any]], dict[str, Any]] = _unchanged
    write: Callable[[dict[str, Any]], dict[str, Any]] = _unchanged
    length: str = "max_position_embeddings"

    @property
    def tables(self) -> tuple[tuple[Row, ...], ...]:
        """Returns the table of tensors, and those of other checkpoints."""
        return (self.rows, *self.layouts)

    def known(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Reads a `config.json`.

        Raises:
          ReslabError: If a field is missing, wrong or not supported.
        """
        others = rope.FIELDS if self.has_rope else ()
        found = fields.read(config, self.fields, others)
        if self.has_rope:
            found |= rope.read(
                config, self.rope_kinds, self.rope_theta, self.rope_fraction
            )
        return self.read(found)

    def fill(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """The design that a config describes; fields of `LAYERED` are lists.

        Raises:
          ReslabError: If it is not supported.
        """
        depth = design.fill(self.design["depth"], known)
        if bounds := configs.schema()["model.depth"].bounds:
            bounds.check("config.json: layers", depth)
        for name, field in self.fields.items():
            if field.kind == "list" and len(known[name]) != depth:
                raise ReslabError(
                    f"config.json: {name}",
                    expected=f"{depth} entries, one for each layer",
                    got=str(len(known[name])),
                )
        return {
            name: [design.fill(template, known, layer) for layer in range(depth)]
            if name in LAYERED
            else design.fill(template, known)
            for name, template in self.design.items()
        }

    def match(
        self, wanted: Mapping[str, Any], base: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The fields of a config that describes a design: the inverse of `fill`.

        Args:
          wanted: The design.
          base: Fields of a config whose words are kept where several would fit.

        Raises:
          Mismatch: If the family has no such design.
        """
        matcher = design.Matcher(base)
        for name, template in self.design.items():
            if name not in LAYERED:
                matcher(template, wanted[name], f"model.{name}")
        for name in LAYERED:
            for layer, value in enumerate(wanted[name]):
                where = f"model.{name} of layer {layer}"
                matcher(self.design[name], value, where, layer)
        found = matcher.found
        for name, value in found.items():
            if isinstance(value, Mapping):
                entries = [value[layer] for layer in sorted(value)]
                is_list = name in self.fields and self.fields[name].kind == "list"
                if not is_list and len(set(entries)) > 1:
                    raise design.Mismatch(
                        f"config.json: {name}",
                        expected="one for all layers",
                        got=", ".join(sorted(set(entries))),
                    )
                found[name] = entries if is_list else entries[0]
        return found

    def differences(self, wanted: Mapping[str, Any]) -> int:
        """Counts the fields of a design that the family does not have, by layer."""
        count = 0
        for name, template in self.design.items():
            values = wanted[name] if name in LAYERED else [wanted[name]]
            for layer, value in enumerate(values):
                try:
                    design.Matcher()(template, value, name, layer)
                except design.Mismatch:
                    count += 1
        return count

    def config(
        self, wanted: Mapping[str, Any], base: Mapping[str, Any] | None, length: int
    ) -> dict[str, Any]:
        """The content of a `config.json` for a design.

        Args:
          wanted: The design.
          base: Another config of the family, kept as it is if it describes the same
            design; None starts from nothing.
          length: The longest sequence, where the design does not say it.

        Raises:
          Mismatch: If the family has no such design.
        """
        known = self.known(base) if base else None
        found = self.match(wanted, known)
        if base and known and all(known[key] == one for key, one in found.items()):
            return dict(base)
        kept = {k: v for k, v in (base or {}).items() if k not in rope.FIELDS}
        named = {key: one for key, one in found.items() if not key.startswith("rope")}
        single = {k: f.values[0] for k, f in self.fields.items() if f.is_single}
        written = {
            **single,
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **({self.length: length} if self.length else {}),
            **kept,
            **named,
        }
        if self.has_rope:
            written |= rope.write(found, self.rope_kinds, self.rope_fraction)
        written = self.write(written)
        # The class has no field for some of it, or not such a value.
        try:
            now = self.known(written)
        except ReslabError as error:
            raise design.Mismatch(str(error)) from None
        for name, value in found.items():
            if now[name] != value:
                raise design.Mismatch(name, expected=repr(now[name]), got=repr(value))
        return written


def names() -> list[str]:
    """The files of families, which their checkpoints' types may differ from."""
    modules = pkgutil.iter_modules(reslab.interop.__path__)
    return sorted(module.name for module in modules if not module.ispkg)


def families() -> dict[str, Family]:
    """Returns all families by their `model_type`."""
    found = [importlib.import_module(f"reslab.interop.{name}") for name in names()]
    return {module.FAMILY.model_type: module.FAMILY for module in found}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a `config.json`.

    Raises:
      ReslabError: If it names none, or one that reslab does not read.
    """
    known, name = families(), config.get("model_type")
    if not isinstance(name, str) or name not in known:
        got = "nothing" if name is None else repr(name)
        raise ReslabError(
            "config.json: model_type is not supported",
            got=got,
            hint=nearest(str(name), known),
        )
    return known[name]


def closest(
    wanted: Mapping[str, Any], base: Mapping[str, Any] | None, length: int
) -> tuple[Family, dict[str, Any]]:
    """The family that has a design, and its config.

    Args:
      wanted: The design.
      base: Config that the design began from, if any.
      length: The longest sequence.

    Raises:
      ReslabError: If none has it; says which part the nearest lacks.
    """
    known = families()
    first = (base or {}).get("model_type")
    errors = []
    for name in sorted(known, key=lambda name: name != first):
        given = base if name == first else None
        try:
            return known[name], known[name].config(wanted, given, length)
        except design.Mismatch as error:
            errors.append((name, error))
    # The one with the fewest differences, of several the first.
    name, error = min(errors, key=lambda one: known[one[0]].differences(wanted))
    raise ReslabError(f"no class of Hugging Face has this design: as {name}, {error}")


def model_fields(filled: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our config for a design.

    Rotations that all layers have in common are the model's own.
    """
    found = {k: v for k, v in filled.items() if k not in ("vocabulary_size", *LAYERED)}
    layered = {name: list(filled[name]) for name in LAYERED}
    # A mixer without positions goes with any.
    arguments = [design.all_arguments("mixers", one) for one in layered["mixer"]]
    positions = {one["position"] for one in arguments if "position" in one}
    if len(positions) == 1 and filled["position"] == "none":
        found["position"] = positions.pop()
        layered["mixer"] = [_without_position(one) for one in layered["mixer"]]
    found |= {name: design.tiled(values) for name, values in layered.items()}
    return {f"model.{name}": value for name, value in found.items()}


def _without_position(spec: str) -> str:
    parsed = registry.parse(spec)
    rest = {k: v for k, v in parsed.arguments.items() if k != "position"}
    return registry.spec_text(parsed.name, rest)
