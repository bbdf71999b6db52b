"""The first chains of a model as a model of their own (Song et al., 2025)."""

from typing import Any

from reslab.core import registry
from reslab.core.bounds import Count, bounded
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.transforms import _stream

# Norms over the features of one head, whose size does not change.
_OF_A_HEAD = ("query_norm", "key_norm", "value_norm")


@bounded
def build(
    variables: ModelState, fields: _stream.Fields, *, count: Count = 1
) -> tuple[ModelState, dict[str, Any]]:
    """Takes the smaller model out that the first chains of a model are.

    Where every projection is `chain` and every norm `chain_rms`, with the same chains,
    no feature sees one of a later chain: without the later ones, the features of the
    first `count` chains are exactly what they were, at every depth. The logits are
    what the head makes of those features alone, so the smaller model's loss is
    another: the authors train its head on.

    Reference: Song et al., 2025, https://arxiv.org/abs/2505.11820.

    Args:
      variables: Parameters and state of a `LanguageModel`.
      fields: Its config, by dotted name.
      count: Number of chains to keep.

    Returns:
      The new parameters, on the host, and the fields of the config that change.

    Raises:
      ReslabError: If the model does not consist of chains, or has fewer.
    """
    chains, is_kv_shared = _chains(fields)
    if not 1 <= count <= len(chains):
        raise ReslabError(
            "first_chains: count",
            expected=f"between 1 and the model's {len(chains)} chains",
            got=str(count),
        )
    kept, whole = chains[:count], sum(chains)

    def share(size: int) -> int:
        return size * sum(kept) // whole

    leaves = {}
    for name, leaf in _stream.take(variables["params"]).items():
        *path, last = name.split("/")
        chain = next((p for p in path if p.startswith("chain_")), None)
        if chain is not None:
            if int(chain.removeprefix("chain_")) < count:
                leaves[name] = leaf
        elif name == "head":
            leaves[name] = leaf[: share(leaf.shape[0])]
        elif last == "embedding" or (last == "gain" and path[-1] not in _OF_A_HEAD):
            leaves[name] = leaf[..., : share(leaf.shape[-1])]
        else:
            leaves[name] = leaf

    features = fields["model.features"]

    def smaller_mixer(parsed: registry.Parsed) -> str:
        text = registry.spec_text(parsed.name, parsed.arguments)
        changed = dict(parsed.arguments)
        changed["heads"] = share(_stream.argument("mixers", text, "heads"))
        if not is_kv_shared and changed.get("kv_heads"):
            changed["kv_heads"] = share(changed["kv_heads"])
        return registry.spec_text(parsed.name, changed)

    def smaller_ffn(parsed: registry.Parsed) -> str:
        spec = registry.spec_text(parsed.name, parsed.arguments)
        hidden = _stream.part_width("ffns", spec, features, "up")
        arguments = {**parsed.arguments, "hidden": share(hidden)}
        return registry.spec_text(parsed.name, arguments)

    def fewer(parsed: registry.Parsed) -> str:
        return registry.spec_text(parsed.name, {**parsed.arguments, "chains": kept})

    changes = {"model.features": share(features)}
    changes |= _stream.rewrite(fields, "mixer", smaller_mixer)
    changes |= _stream.rewrite(fields, "ffn", smaller_ffn)
    changes |= _stream.rewrite(fields, "linear", fewer)
    changes |= _stream.rewrite(fields, "norm", fewer)
    if fields["model.post_embedding_norm"] != "none":
        changes |= _stream.rewrite(fields, "post_embedding_norm", fewer)
    new = _stream.give(leaves, variables["params"])
    return {**variables, "params": new}, changes


def _chains(fields: _stream.Fields) -> tuple[tuple[int, ...], bool]:
    """The chains of a model, and whether keys and values are those of the first."""

    def check(is_right: bool, part: str, expected: str) -> None:
        if not is_right:
            raise ReslabError(
                f"first_chains: model.{part}",
                expected=expected,
                got=repr(fields[f"model.{part}"]),
            )

    spec = fields["model.linear"]
    check(registry.parse(spec).name == "chain", "linear", "chain")
    chains = tuple(_stream.argument("linears", spec, "chains"))
    is_kv_shared = _stream.argument("linears", spec, "is_kv_shared")
    for part in ("norm", "post_embedding_norm"):
        for norm in _stream.specs(fields, part):
            is_same = registry.parse(norm).name == "chain_rms" and chains == tuple(
                _stream.argument("norms", norm, "chains")
            )
            is_none = part == "post_embedding_norm" and norm == "none"
            check(is_same or is_none, part, f"chain_rms(chains={chains})")
    for mixer in _stream.specs(fields, "mixer"):
        parsed = registry.parse(mixer)
        is_right = parsed.name == "attention" and "linear" not in parsed.arguments
        check(is_right, "mixer", "attention, with the model's projections")
        is_cyclic = _stream.argument("mixers", mixer, "is_kv_cyclic")
        check(is_cyclic or not is_kv_shared, "mixer", "attention(is_kv_cyclic=True)")
    for ffn in _stream.specs(fields, "ffn"):
        arguments = registry.parse(ffn).arguments
        check("linear" not in arguments, "ffn", "one with the model's projections")
    residual = registry.parse(fields["model.residual"]).name
    check(residual in ("plain", "reversible"), "residual", "plain or reversible")
    blocks = [registry.parse(spec).name for spec in _stream.specs(fields, "block")]
    known = {"standard", "parallel", "macaron", "reversible"}
    check(set(blocks) <= known, "block", " or ".join(sorted(known)))
    return chains, is_kv_shared
