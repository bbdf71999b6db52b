"""Layers that read the keys and values of others: a cache of a fraction of the size."""

import re
from collections.abc import Sequence
from typing import Any

from reslab.core import registry
from reslab.core.depth import block_layers, separate_layers
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.transforms import _stream

# Parameters that a layer with another's keys and values does not use.
_OWN = re.compile(r"/block_0/mixer/(key|value)(_norm)?/")
# Parameters that leader and follower must have in common.
_COMMON = ("heads", "kv_heads", "head_dim", "window")


def build(
    variables: ModelState, fields: _stream.Fields, *, share: int | tuple[int, ...] = 2
) -> tuple[ModelState, dict[str, Any]]:
    """Lets layers of attention read the keys and values of an earlier layer.

    With `share=4` every fourth layer, from the first on, leads, and the three after it
    follow: they lose their kernels of keys and values and their cache. A tuple names
    the leader of every layer, which may be itself: `share=(0, 0, 2, 0)`. The logits
    change; how much a model bears depends on whether it has trained for it
    (`attention(value_path='stochastic_kv')`). `reslab show` of the new run's config
    says what its cache saves.

    Reference: "Stochastic KV routing", 2026, https://arxiv.org/abs/2604.22782, as
    reported by secondary sources.

    Args:
      variables: Parameters of a `LanguageModel`, and its state.
      fields: Its config, by dotted name.
      share: Distance of leaders, or the leader of every layer.

    Returns:
      The remaining parameters, on the host, each layer separately; and the field
      of the config that changes.

    Raises:
      ReslabError: If a leader comes after its follower, or leads no longer itself; or
        a layer is not attention with its own keys and values, or differs from its
        leader in its heads or window.
    """
    depth = fields["model.depth"]
    leaders = _leaders(share, depth)
    specs = _stream.specs(fields, "mixer")
    parsed = [registry.parse(specs[layer % len(specs)]) for layer in range(depth)]
    for layer, leader in enumerate(leaders):
        _check(parsed[layer], parsed[leader], layer)

    followed = sorted({leader for i, leader in enumerate(leaders) if leader != i})
    # One group each, unless every follower has the nearest of them.
    groups = {leader: group for group, leader in enumerate(followed)}
    if all(
        leader == max(one for one in followed if one < layer)
        for layer, leader in enumerate(leaders)
        if leader != layer
    ):
        groups = dict.fromkeys(followed, 0)

    def path(layer: int) -> str:
        leader = leaders[layer]
        if leader not in groups:
            return "none"
        arguments: dict[str, Any] = {"is_leader": True} if leader == layer else {}
        if groups[leader]:
            arguments["group"] = groups[leader]
        return registry.spec_text("shared_kv", arguments)

    mixers = tuple(
        registry.spec_text(one.name, {**one.arguments, "value_path": path(layer)})
        for layer, one in enumerate(parsed)
    )
    followers = {layer for layer, leader in enumerate(leaders) if leader != layer}

    def is_kept(layer: int, name: str) -> bool:
        return layer not in followers or not _OWN.search(name)

    blocks = block_layers(variables["params"])
    new = {
        name: separate_layers(tree, blocks, is_kept) for name, tree in variables.items()
    }
    return new, {"model.mixer": _tile(mixers)}


def _leaders(share: int | Sequence[int], depth: int) -> list[int]:
    if isinstance(share, int):
        if share < 1:
            raise ReslabError("share_kv: share", expected="at least 1", got=str(share))
        return [layer - layer % share for layer in range(depth)]
    leaders = list(share)
    if len(leaders) != depth:
        raise ReslabError(
            "share_kv: share",
            expected=f"a leader for each of the {depth} layers",
            got=f"{len(leaders)} of them",
        )
    for layer, leader in enumerate(leaders):
        if not 0 <= leader <= layer:
            raise ReslabError(
                f"share_kv: leader of layer {layer}",
                expected="the layer itself or an earlier one",
                got=str(leader),
            )
        if leaders[leader] != leader:
            raise ReslabError(
                f"share_kv: leader of layer {layer}",
                expected="a layer that leads itself",
                got=f"layer {leader}, which follows layer {leaders[leader]}",
            )
    return leaders


def _check(layer: registry.Parsed, leader: registry.Parsed, index: int) -> None:
    spec = layer.arguments.get("value_path", "none")
    is_own = registry.parse(spec).name in ("none", "stochastic_kv")
    if layer.name != "attention" or not is_own:
        raise ReslabError(
            f"share_kv: the mixer of layer {index}",
            expected="attention with keys and values of its own",
            got=repr(registry.spec_text(layer.name, layer.arguments)),
        )
    for key in _COMMON:
        own, leading = (one.arguments.get(key) for one in (layer, leader))
        if own != leading:
            raise ReslabError(
                f"share_kv: {key} of layer {index}",
                expected=f"its leader's, {leading}",
                got=str(own),
            )


def _tile(specs: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest pattern that, tiled, gives these specs."""
    for size in range(1, len(specs) + 1):
        if all(spec == specs[i % size] for i, spec in enumerate(specs)):
            return specs[:size]
    return specs
