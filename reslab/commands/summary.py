"""Configs as text: what `reslab show` prints."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reslab.commands.layers import layer_table
from reslab.core import config as configs
from reslab.core import registry, surroundings
from reslab.core.layout import layouts
from reslab.core.trees import (
    count_bytes,
    count_parameters,
    is_box,
    named_leaves,
    path_name,
)
from reslab.runtime.text import aligned


def show_config(config: ConfigDict, step: int = 0) -> str:
    """Fields, parameters with their groups, layers, FLOPs, and memory.

    Args:
      config: The resolved config.
      step: Step at which learning rates are given beside those at the peak.

    Raises:
      ReslabError: If the config cannot be built on the devices at hand.
    """
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
        return float(
            registry.make(
                "schedules", spec, **surroundings.Schedules(steps=config.train.steps)
            )(step)
        )

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
    unit = setup.task.unit.removesuffix("s")
    training = setup.task.flops_per_unit(setup.model, params)
    sequences = f", sequences of {length}" if unit == "token" else ""
    devices = setup.mesh.devices.size
    memory = [
        ("parameters", device_bytes(params)),
        ("gradients", device_bytes(params)),
        ("optimizer state", device_bytes(setup.shapes.opt_state)),
    ]
    lines = [f"{key} = {value!r}" for key, value in configs.flatten(config)]
    lines += ["", *aligned(rows), ""]
    if table := layer_table(config, params):
        lines += [*table, ""]
    lines += [f"{count:,} parameters" + _counted(setup.model, params, count)]
    lines += [
        f"{training:,} FLOPs per {unit} in training (matrix products{sequences})",
        f"memory per device, {devices} device{'s' if devices > 1 else ''}: "
        + ", ".join(f"{what} {size / 2**20:,.1f} MiB" for what, size in memory),
        "activations are not in it: they depend on the compiler",
    ]
    if hasattr(setup.model, "init_state"):
        lines.append(_generation_memory(setup.model, length))
    return "\n".join(lines)


def _counted(model: Any, params: Any, count: int) -> str:
    """Says how many parameters a token meets, and how many without sharing."""
    from reslab.models.cost import active_parameters, effective_parameters

    if not hasattr(model, "make_stack"):
        return ""
    active = active_parameters(model, params)
    effective = effective_parameters(model, params)
    return ("" if active == count else f", {active:,} of them active for a token") + (
        ""
        if effective == count
        else f", {effective:,} if every pass had parameters of its own"
    )


def _generation_memory(model: Any, length: int) -> str:
    """Describes the memory of a sequence during generation, and savings by sharing."""
    from reslab.models.cost import generation_bytes

    kept, alone = generation_bytes(model, length)
    longer, _ = generation_bytes(model, 2 * length)
    line = (
        f"caches and states of a sequence of {length} while it is generated: "
        f"{kept / 2**20:,.2f} MiB, {(longer - kept) / length:,.0f} bytes per further "
        "token"
    )
    if kept == alone:
        return line
    return f"{line}, {1 - kept / alone:.0%} less than without keys and values shared"


def _method_of(plan: Any, kind: str) -> tuple[str, float]:
    """The method that a parameter is really updated by, and its share of the rate."""
    if not isinstance(plan.method, str):
        return "a function", 1.0
    parsed = registry.parse(plan.method)
    build = registry.module("optimizers", parsed.name).build
    known = registry.arguments(build)
    if "others" not in known or kind == "matrix":
        return plan.method, 1.0
    others = parsed.arguments.get("others", known["others"].default)
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
