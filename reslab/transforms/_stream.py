"""Writers and readers of the residual stream, and changes of both.

Arithmetic is in float64 on the host, rounded once to the dtype of the parameter:
an exact conversion then costs no more than one rounding. Leaves are named by path;
those of the layers have an axis of layers before all others.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves
from reslab.nn.base.norm import needs_batch

Leaves = dict[str, np.ndarray]
Fields = Mapping[str, Any]

# Parts with known reads and writes of the stream; others may access it elsewhere.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "placement": ("pre",),
    "residual": ("plain",),
    "block": ("standard",),
    "stack": ("uniform", "looped"),
    "linear": ("dense",),
    "position": ("rope", "learned", "none"),
    "mixer": ("attention", "gated_delta"),
    "ffn": ("swiglu", "gelu"),
}
# All projections into the stream have its features as their last axis.
_WRITES = re.compile(
    r"^embedding$|^position_encoding/embedding$|/(mixer/output|ffn/down)/(kernel|bias)$"
)
_READS = re.compile(
    r"^(?P<block>.*)/(?P<part>mixer|ffn)/(value_path/)?"
    r"(query|key|value|gate|beta|decay|up)/kernel$"
)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A kernel that multiplies the normalized stream.

    Attributes:
      kernel: Name of the kernel.
      bias: Name of the bias, which need not be there.
      norm: Name of the norm before it; its parameters are `<norm>/gain`, ....
      part: "mixer", "ffn" or "head".
    """

    kernel: str
    bias: str
    norm: str
    part: str


def readers(leaves: Mapping[str, Any]) -> Iterator[Reader]:
    """Returns all kernels that read from the stream; the head comes last."""
    for name in leaves:
        if match := _READS.match(name):
            part = match["part"]
            norm = f"{match['block']}/{part}_placement/input_norm"
            yield Reader(name, name.removesuffix("kernel") + "bias", norm, part)
    yield Reader("head", "head_bias", "final_norm", "head")


def writers(leaves: Mapping[str, Any]) -> list[str]:
    """Names of the leaves whose values are written to the stream."""
    return [name for name in leaves if _WRITES.search(name)]


def recentre(leaf: np.ndarray) -> np.ndarray:
    """Takes the mean over the last axis away, so that what is written has none.

    kernel (..., outputs), bias (outputs,) or table (rows, outputs): each row of a
    kernel is an output of its own, up to a factor.
    """
    return leaf - np.mean(leaf, axis=-1, keepdims=True)


def compress_writer(leaf: np.ndarray) -> np.ndarray:
    """Leaves the last feature out of what is written: minus the sum of the others."""
    return leaf[..., :-1]


def compress_reader(kernel: np.ndarray, axis: int) -> np.ndarray:
    """Makes a kernel read a stream without its last feature.

        kernel'[i] = kernel[i] - kernel[last]

    Args:
      kernel: The kernel.
      axis: The axis that meets the stream.
    """
    last = kernel.shape[axis] - 1
    others, one = np.split(kernel, [last], axis=axis)
    return others - one


def fold_gain(kernel: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Multiplies the rows of a kernel by the gain of the norm before it.

    Args:
      kernel: (layers, features, ...) or, where there are no layers, (features, ...).
      gain: What the norm multiplies by, (layers, features) or (features,).
    """
    return kernel * gain.reshape(gain.shape + (1,) * (kernel.ndim - gain.ndim))


def fold_bias(kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Returns the preceding norm's bias after the kernel: bias . kernel.

    Args:
      kernel: (layers, features, ...) or (features, ...).
      bias: (layers, features) or (features,).

    Returns:
      The bias that the projection must add, (layers, ...) or (...).
    """
    flat = kernel.reshape(*bias.shape, -1)
    folded = np.matmul(bias[..., None, :], flat)[..., 0, :]
    return folded.reshape(*bias.shape[:-1], *kernel.shape[bias.ndim :])


def add_offsets(
    transform: str, leaves: Leaves, fields: Fields, offsets: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Moves what norms add at their end into the biases of the kernels that follow.

    Args:
      transform: Name of the transform, for errors.
      leaves: All parameters; biases are added to them.
      fields: The config.
      offsets: What each norm adds, by its path, (layers, features) or (features,).

    Returns:
      The fields that this changes.

    Raises:
      ReslabError: If a norm adds something before a part that can have no bias.
    """
    changes: dict[str, Any] = {"model.use_head_bias": True}
    takes_bias = {"head": True}
    for part, family in (("mixer", "mixers"), ("ffn", "ffns")):
        takes_bias[part] = all(
            registry.accepts(family, spec, "use_bias") for spec in specs(fields, part)
        )
        if takes_bias[part]:
            changes |= rewrite(fields, part, _with_bias)
            _add_output_biases(leaves, part)
    for reader in list(readers(leaves)):
        kernel = leaves[reader.kernel]
        offset = offsets.get(reader.norm)
        if not takes_bias[reader.part]:
            if offset is not None and np.any(offset):
                raise ReslabError(
                    f"{transform}: the norm before the {reader.part} adds something",
                    expected=f"a {reader.part} that takes use_bias",
                    got=repr(fields[f"model.{reader.part}"]),
                    hint="a model trained with a norm that has use_bias=False",
                )
            continue
        lead = 1 if reader.part == "head" else 2
        if offset is None:
            offset = np.zeros(kernel.shape[:lead])
        own = leaves.get(reader.bias, np.float64(0.0))
        leaves[reader.bias] = own + fold_bias(kernel, offset)
    return changes


def _with_bias(parsed: registry.Parsed) -> str:
    return registry.spec_text(parsed.name, {**parsed.arguments, "use_bias": True})


def _add_output_biases(leaves: Leaves, part: str) -> None:
    """Gives the projections into the stream the biases that `use_bias` brings."""
    for name in writers(leaves):
        kernel = leaves[name]
        if f"/{part}/" in name and name.endswith("/kernel"):
            bias = name.removesuffix("kernel") + "bias"
            empty = np.zeros((kernel.shape[0], kernel.shape[-1]))
            leaves.setdefault(bias, empty)


def take(params: Any) -> Leaves:
    """Returns all leaves by name, in float64."""
    return {
        name: np.asarray(leaf, np.float64)
        for name, leaf in named_leaves(jax.device_get(params)).items()
    }


def give(leaves: Leaves, like: Any) -> dict[str, Any]:
    """The tree of named leaves, in the dtype in which the parameters are stored."""
    dtype = named_leaves(like)["embedding"].dtype
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf.astype(dtype)
    return tree


def untie(leaves: Leaves, fields: Fields) -> dict[str, Any]:
    """Gives the head a kernel of its own, since the embedding alone will change.

    Returns:
      The fields that this changes.
    """
    if not fields["model.tie_embeddings"]:
        return {}
    leaves["head"] = leaves["embedding"].T
    return {"model.tie_embeddings": False}


def fold_embedding_norm(
    transform: str, leaves: Leaves, fields: Fields, *, may_stay: bool = False
) -> dict[str, Any]:
    """Normalizes the rows of the embedding, in place of a norm after it.

    Exact: what the norm sees is a row of the table and nothing else.

    Args:
      transform: Name of the transform, for errors.
      leaves: All parameters; the embedding changes, and the norm's go.
      fields: The config.
      may_stay: Whether a norm of one token stays where something stands between the
        table and it; otherwise it is refused.

    Returns:
      The fields that this changes.

    Raises:
      ReslabError: If the norm can neither go nor stay.
    """
    spec = fields["model.post_embedding_norm"]
    if spec == "none":
        return {}
    is_alone = registry.parse(fields["model.position"]).name != "learned"
    is_alone &= not fields["model.use_embedding_projection"]
    # The factor comes before the norm; folded rows would be multiplied by it.
    is_alone &= fields["model.embedding_scale"] == 1
    is_of_one_token = not needs_batch(spec)
    if may_stay and is_of_one_token and not is_alone:
        return {}
    if not (is_alone and is_of_one_token):
        raise ReslabError(
            f"{transform}: model.post_embedding_norm",
            expected="'none', or a norm of rows of the embedding alone",
            got=f"{spec!r} with model.position={fields['model.position']!r}",
            hint="fold_embedding_projection first, if the model has the projections",
        )
    prefix = "embedding_norm/"
    params = {n.removeprefix(prefix): n for n in leaves if n.startswith(prefix)}
    with jax.enable_x64(True):
        given = {name: jnp.asarray(leaves.pop(n)) for name, n in params.items()}
        norm = registry.make("norms", spec)
        found: Any = norm.apply({"params": given}, jnp.asarray(leaves["embedding"]))
        leaves["embedding"] = np.asarray(found)
    return {"model.post_embedding_norm": "none"}


def specs(fields: Fields, part: str) -> tuple[str, ...]:
    """The specs of a part, which may be tiled over depth."""
    value = fields[f"model.{part}"]
    return (value,) if isinstance(value, str) else tuple(value)


def rewrite(
    fields: Fields, part: str, change: Callable[[registry.Parsed], str]
) -> dict[str, Any]:
    """Changes every spec of a part; returns the field, tiled as it was."""
    changed = tuple(change(registry.parse(spec)) for spec in specs(fields, part))
    is_one = isinstance(fields[f"model.{part}"], str)
    return {f"model.{part}": changed[0] if is_one else changed}


def argument(family: str, spec: str, key: str) -> Any:
    """The value of an argument: as written in the spec, or the default."""
    parsed = registry.parse(spec)
    build = registry.module(family, parsed.name).build
    return parsed.arguments.get(key, registry.arguments(build)[key].default)


def check(
    transform: str,
    fields: Fields,
    norms: Sequence[str],
    placements: Sequence[str] = KNOWN["placement"],
) -> None:
    """Checks that every part is one whose reads and writes are known.

    Args:
      transform: Name of the transform, for errors.
      fields: The config.
      norms: The norms that the model may have.
      placements: The placements that it may have.

    Raises:
      ReslabError: If one is not.
    """
    wanted = {"norm": norms, **KNOWN, "placement": placements}
    for part, known in wanted.items():
        for spec in specs(fields, part):
            parsed = registry.parse(spec)
            inner = parsed.arguments.get("linear", "dense")
            if parsed.name not in known or inner not in KNOWN["linear"]:
                raise ReslabError(
                    f"{transform}: model.{part}",
                    expected=" or ".join(known),
                    got=repr(spec),
                )


def part_width(family: str, spec: str, features: int, kernel: str) -> int:
    """Last axis of a projection of a mixer or ffn, at a given width of the stream."""
    part = registry.make(family, spec, parent=None)
    x = jax.ShapeDtypeStruct((1, 2, features), jnp.float32)
    positions = {"positions": jnp.zeros((1, 2), jnp.int32)}
    keywords = positions if family == "mixers" else {}
    shapes = jax.eval_shape(lambda x: part.init(jax.random.key(0), x, **keywords), x)
    found = [
        leaf
        for name, leaf in named_leaves(shapes["params"]).items()
        if name.startswith(f"{kernel}/kernel")
    ]
    return found[0].shape[-1]


def means(leaves: Leaves, names: Sequence[str]) -> dict[str, float]:
    """The largest mean over the last axis, relative to the largest entry."""

    def largest(leaf: np.ndarray) -> float:
        return float(np.max(np.abs(leaf), initial=0.0))

    return {
        name: largest(np.mean(leaves[name], axis=-1)) / (largest(leaves[name]) or 1.0)
        for name in names
        if math.prod(leaves[name].shape)
    }
