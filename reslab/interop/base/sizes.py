"""Designs of our configs, with the sizes that their parameters have."""

from collections.abc import Mapping
from typing import Any

from reslab.core import registry
from reslab.interop.base import design
from reslab.interop.base.family import LAYERED, PLAIN
from reslab.interop.base.forms import Shape
from reslab.interop.base.recurrent import expansion


def resolved(
    given: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    blocks: Mapping[str, Any],
) -> dict[str, Any]:
    """The design of a config of ours, with the sizes that its parameters have.

    Args:
      given: Our config, by dotted name.
      shapes: Shape of each parameter.
      blocks: The layers in each block of each scan.

    Returns:
      The design in the form of `Family.fill`.
    """
    depth = given["model.depth"]
    place = {int(i): block for block, layers in blocks.items() for i in layers}
    found: dict[str, Any] = {"vocabulary_size": shapes["embedding"][0]}
    for name in PLAIN.keys() - LAYERED - found.keys():
        found[name] = given[f"model.{name}"]
    for name in LAYERED:
        specs = given[f"model.{name}"]
        specs = (specs,) if isinstance(specs, str) else specs
        found[name] = [specs[layer % len(specs)] for layer in range(depth)]
    position = found["position"]
    for layer in range(depth):
        block = place.get(layer, "")
        mixer, ffn = found["mixer"][layer], found["ffn"][layer]
        found["mixer"][layer] = _sized_mixer(mixer, position, block, shapes)
        up = shapes.get(f"{block}/ffn/up/kernel")
        if up and registry.accepts("ffns", ffn, "hidden"):
            arguments = design.all_arguments("ffns", ffn) | {"hidden": up[-1]}
            found["ffn"][layer] = _text("ffns", ffn, arguments)
    if registry.parse(position).name != "learned":
        found["position"] = "none"  # Nothing is added to the embedding.
    elif table := shapes.get("position_encoding/embedding"):
        arguments = design.all_arguments("positions", position)
        found["position"] = _text(
            "positions", position, arguments | {"length": table[0]}
        )
    return found


def _sized_mixer(
    spec: str, position: str, block: str, shapes: Mapping[str, Shape]
) -> str:
    parsed = registry.parse(spec)
    arguments = design.all_arguments("mixers", spec)
    before = f"{block}/mixer/"
    own = {
        path.removeprefix(before): shape
        for path, shape in shapes.items()
        if path.startswith(before)
    }
    if sizes := _SIZES.get(parsed.name):
        arguments |= sizes(own)
    if arguments.get("score_scale") == arguments.get("head_dim", 1) ** -0.5:
        arguments["score_scale"] = 0.0  # The same by its usual name.
    if "position" in arguments:
        chosen = parsed.arguments.get("position", position)
        is_added = registry.parse(chosen).name == "learned"
        arguments["position"] = "none" if is_added else chosen
    return _text("mixers", spec, arguments)


def _of_attention(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    if not {"query/kernel", "key/kernel"} <= shapes.keys():
        return {}
    *_, heads, size = shapes["query/kernel"]
    return {"heads": heads, "head_dim": size, "kv_heads": shapes["key/kernel"][-2]}


def _of_delta(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    *_, key_heads, size = shapes["query/kernel"]
    *_, heads, value_size = shapes["value/kernel"]
    return {
        "heads": heads,
        "key_heads": key_heads,
        "head_dim": size,
        "value_expansion": expansion(value_size, size),
    }


def _of_latent(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    *_, rank, _, size = shapes["key_up_kernel"]
    return {
        "head_dim": size,
        "value_dim": shapes["value_up_kernel"][-1],
        "rank": rank,
        "rope_dim": shapes["latent/kernel"][-1] - rank,
    }


# Arguments of mixers from the shapes of their parameters.
_SIZES = {
    "attention": _of_attention,
    "gated_delta": _of_delta,
    "kda": _of_delta,
    "latent_attention": _of_latent,
    "mamba": lambda shapes: {"step_rank": shapes["step_down/kernel"][-1]},
    "rg_lru": lambda shapes: {"width": shapes["value/kernel"][-1]},
}


def _text(family: str, spec: str, arguments: Mapping[str, Any]) -> str:
    return design.spec_text(family, registry.parse(spec).name, arguments)
