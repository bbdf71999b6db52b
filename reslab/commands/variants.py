"""Variants and configs as text: what `reslab list` and `reslab show` print."""

import ast
import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import extension, registry
from reslab.core.errors import ReslabError, nearest
from reslab.core.layout import layouts
from reslab.core.trees import (
    count_bytes,
    count_parameters,
    is_box,
    named_leaves,
    path_name,
    unbox,
)
from reslab.core.types import Context
from reslab.runtime.text import aligned


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the list of variants.

    Attributes:
      family: Family of the variant.
      name: Name to write in a config.
      summary: First line of its docstring.
      reference: Author, year and address, or an empty string.
    """

    family: str
    name: str
    summary: str
    reference: str


def entries(family: str) -> Iterator[Entry]:
    """Reads the rows of a family from its files, importing none of them."""
    for name in registry.names(family):
        path = registry.file(family, name)
        summary, reference = _docstring_heads(path)
        yield Entry(family, name, summary, reference)


def _docstring_heads(path: pathlib.Path) -> tuple[str, str]:
    tree = ast.parse(path.read_bytes())
    definitions = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }
    target = "build"
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "build":
            target = ast.unparse(node.value)
    node = definitions.get(target)
    text = (ast.get_docstring(node) if node else None) or ast.get_docstring(tree) or ""
    paragraph = ""
    if "Reference:" in text:
        paragraph = text.split("Reference:", 1)[1].split("\n\n", 1)[0]
    reference = " ".join(paragraph.split()).split(";", 1)[0].rstrip(".")
    return text.partition("\n")[0], reference


def list_variants(family: str | None = None) -> str:
    """Every variant of one family or of all: name, one line, reference.

    Raises:
      ReslabError: If there is no such family.
    """
    lines = []
    for one in [family] if family else registry.FAMILIES:
        rows = list(entries(one))
        lines.append(f"{one} ({len(rows)})")
        wide = max((len(row.name) for row in rows), default=0)
        for row in rows:
            lines.append(f"  {row.name:{wide}}  {row.summary}")
            if row.reference:
                lines.append(f"  {'':{wide}}  {row.reference}")
        lines.append("")
    return "\n".join(lines).rstrip()


def variants_table() -> str:
    """Every variant as a Markdown table, for docs/VARIANTS.md."""
    lines = ["| family | variants |", "|---|---|"]
    for family in registry.FAMILIES:
        listed = ", ".join(f"`{name}`" for name in registry.names(family))
        lines.append(f"| {family} | {listed} |")
    return "\n".join(lines)


def show_variant(name: str, width: int) -> str:
    """Docstring, arguments with defaults, and parameter shapes of a variant.

    Args:
      name: `family/name`.
      width: Width at which the shapes are given.

    Raises:
      ReslabError: If there is no such variant.
    """
    family, _, variant = name.partition("/")
    if family not in registry.FAMILIES:
        raise ReslabError(
            f"unknown family {family!r}", hint=nearest(family, registry.FAMILIES)
        )
    if not all(part.isidentifier() for part in variant.split(".")):
        raise ReslabError(
            f"{family} {variant!r}",
            expected="the name of a variant",
            hint=nearest(variant, registry.names(family)),
        )
    build = registry.module(family, variant).build
    lines = [name, "", inspect.getdoc(build) or "", "", "Arguments:"]
    for key, parameter in registry.arguments(build).items():
        default = parameter.default
        value = getattr(default, "__name__", repr(default))
        lines.append(f"  {key} = {'required' if default is parameter.empty else value}")
    try:
        shapes = parameter_shapes(family, variant, width)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, ReslabError) or extension.explain(error):
            raise
        raise ReslabError(
            f"{name} at width {width}",
            expected="a width that its parts divide",
            got=str(error).partition("\n")[0],
            hint="--width 128",
        ) from error
    if shapes is not None:
        lines += ["", f"Parameters at width {width}:"]
        for path, leaf in shapes.items():
            lines.append(f"  {path}  {tuple(leaf.shape)}")
        lines.append(f"  {count_parameters(list(shapes.values())):,} in all")
    return "\n".join(lines)


def parameter_shapes(
    family: str, spec: registry.Spec, width: int
) -> dict[str, jax.ShapeDtypeStruct] | None:
    """Shapes of a variant's parameters at a width; None if it can have none."""
    example = EXAMPLES.get(family)
    if example is None:
        return None
    variables = jax.eval_shape(lambda: example(spec, width)[1])
    return named_leaves(unbox(variables).get("params", {}))


def _init(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module.init_with_output(jax.random.key(0), *args, **kwargs)


def _example_input(width: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 8, width))


def _example_norm(spec, width):
    return _init(registry.make("norms", spec), _example_input(width))


def _example_ffn(spec, width):
    return _init(registry.make("ffns", spec), _example_input(width))


def _example_linear(spec, width):
    module = registry.make("linears", spec, features=width)
    return _init(module, _example_input(width))


def _example_mixer(spec, width):
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    module = registry.make("mixers", spec)
    return _init(module, _example_input(width), positions=positions)


def _example_position(spec, width):
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    module = registry.make("positions", spec)
    return _init(module, _example_input(width), positions, method="embed")


def _example_value_path(spec, width):
    module, x = registry.make("value_paths", spec, depth=2), _example_input(width)
    heads = x.reshape(*x.shape[:-1], 4, -1)

    def layer(shared):
        (key, value, shared), variables = _init(
            module,
            x,
            key=lambda: heads,
            value=lambda: heads,
            keep=lambda name, new: new,
            shared=shared,
        )
        return (key, value), shared, variables

    # The parameters are those of a layer after the first.
    output, _, variables = layer(layer({})[1])
    return output, variables


def _example_residual(spec, width):
    module = registry.make("residuals", spec)
    stream = module.widen(_example_input(width))
    return _init(module, stream, jnp.tanh, site=0)


def _example_placement(spec, width):
    module = registry.make("placements", spec)
    plain = registry.make("residuals", "plain", parent=None)
    return _init(module, _example_input(width), plain, jnp.tanh, site=0)


def _example_block(spec, width):
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    module = registry.make("blocks", spec)
    ends = registry.make("residuals", module.residual)
    stream = ends.apply({}, _example_input(width), method="widen")
    return _init(module, stream, {}, layer=0, positions=positions)


def _example_stack(spec, width):
    block = registry.factory("blocks", "standard")
    positions = jnp.broadcast_to(jnp.arange(8), (2, 8))
    module = registry.make("stacks", spec, blocks=(block,), depth=2, context=Context())
    return _init(module, _example_input(width), positions=positions)


# How a variant of each family is called, alone, on an input (2, 8, width): used
# to show its parameters. Returns the output and the variables.
EXAMPLES: Mapping[str, Callable[[registry.Spec, int], tuple[Any, Any]]] = {
    "norms": _example_norm,
    "ffns": _example_ffn,
    "linears": _example_linear,
    "mixers": _example_mixer,
    "positions": _example_position,
    "value_paths": _example_value_path,
    "residuals": _example_residual,
    "placements": _example_placement,
    "blocks": _example_block,
    "stacks": _example_stack,
}


def show_config(config: ConfigDict, step: int = 0) -> str:
    """Fields, parameters with their groups, FLOPs per token and memory.

    Args:
      config: The resolved config.
      step: Step at which learning rates are given beside those at the peak.

    Raises:
      ReslabError: If the config cannot be built on the devices at hand.
    """
    from reslab.models.cost import forward_flops_per_token, training_flops_per_token
    from reslab.parallel.mesh import device_bytes, make_mesh
    from reslab.train.state import make_setup, matching_patterns, parameter_plans

    configs.check(config)
    setup = make_setup(config, make_mesh(config.mesh))
    params, length = setup.shapes.params, config.data.length
    planned = parameter_plans(config, setup.boxed_params)
    state = state_bytes(setup.shapes.opt_state, named_leaves(params))
    patterns = matching_patterns(config, params)
    axes = _logical_axes(setup.boxed_params)
    kinds = {
        k: one.kind for k, one in named_leaves(layouts(setup.boxed_params)).items()
    }
    rows = [
        (
            *("parameter", "shape", "axes", "group", "method"),
            *("peak lr", f"at step {step}", "decay", "state"),
        )
    ]

    def factor(spec: str) -> float:
        spec = spec or config.optim.schedule
        return float(registry.make("schedules", spec, steps=config.train.steps)(step))

    for name, leaf in named_leaves(params).items():
        plan = planned[name]
        method, share = _method_of(plan, kinds[name])
        rows.append(
            (
                name,
                " x ".join(map(str, leaf.shape)) or "scalar",
                " ".join(axis or "-" for axis in axes[name]),
                patterns[name],
                "frozen" if plan.freeze else method,
                "-" if plan.freeze else _rates(plan, share, step),
                "-"
                if plan.freeze
                else _rates(plan, share * factor(plan.schedule), step),
                "-" if plan.freeze else f"{plan.weight_decay:g}",
                f"{state[name] / 2**10:,.1f} KiB",
            )
        )
    count = count_parameters(params)
    forward = forward_flops_per_token(setup.model, params, length)
    training = training_flops_per_token(setup.model, params, length)
    devices = setup.mesh.devices.size
    memory = [
        ("parameters", device_bytes(params)),
        ("gradients", device_bytes(params)),
        ("optimizer state", device_bytes(setup.shapes.opt_state)),
    ]
    lines = [f"{key} = {value!r}" for key, value in configs.flatten(config)]
    lines += ["", *aligned(rows), "", f"{count:,} parameters"]
    lines += [
        f"{forward:,} FLOPs per token forward, {training:,} in training "
        f"(matrix products, sequences of {length})",
        f"memory per device, {devices} device{'s' if devices > 1 else ''}: "
        + ", ".join(f"{what} {size / 2**20:,.1f} MiB" for what, size in memory),
        "activations are not in it: they depend on the compiler",
    ]
    if hasattr(setup.model, "init_state"):
        lines.append(_generation_memory(setup.model, length))
    return "\n".join(lines)


def _generation_memory(model: Any, length: int) -> str:
    """Describes the memory of a sequence during generation, and savings by sharing."""
    from reslab.models.cost import generation_bytes

    kept, alone = generation_bytes(model, length)
    line = (
        f"caches and states of a sequence of {length} while it is generated: "
        f"{kept / 2**20:,.2f} MiB"
    )
    if kept == alone:
        return line
    return f"{line}, {1 - kept / alone:.0%} less than without keys and values shared"


def _method_of(plan: Any, kind: str) -> tuple[str, float]:
    """The method that a parameter is really updated by, and its share of the rate."""
    if not isinstance(plan.method, str):
        return "a function", 1.0
    parsed = registry.parse(plan.method)
    others = getattr(registry.module("optimizers", parsed.name), "OTHERS", None)
    if others is None or kind == "matrix":
        return plan.method, 1.0
    return f"{others} of {parsed.name}", parsed.arguments.get("others_scale", 1.0)


def _rates(plan: Any, factor: float, step: int) -> str:
    """The learning rate of a parameter; its range where layers differ."""
    scale = plan.factor(step) if callable(plan.factor) else plan.factor
    rates = {f"{plan.lr * factor * end:.4g}" for end in (np.min(scale), np.max(scale))}
    return " to ".join(sorted(rates, key=float))


def state_bytes(state: Any, names: Iterable[str]) -> dict[str, int]:
    """Bytes of the optimizer's state that belong to each parameter.

    Args:
      state: The state, or its shapes.
      names: Paths of the parameters.
    """
    names = sorted(names, key=len, reverse=True)
    found = dict.fromkeys(names, 0)
    for path, leaf in named_leaves(state).items():
        # Statistics are kept in trees like the parameters.
        owner = next((name for name in names if f"/{path}".endswith(f"/{name}")), None)
        if owner is not None:
            found[owner] += count_bytes(leaf)
    return found


def _logical_axes(boxed: Any) -> dict[str, tuple[str | None, ...]]:
    """The logical axis names of every parameter, by path."""
    flat = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_box)[0]
    return {path_name(path): getattr(box, "names", ()) for path, box in flat}
