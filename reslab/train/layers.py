"""Metrics of the optimizer by layer, computed inside a training step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core import registry, surroundings
from reslab.core.depth import sum_by_layer
from reslab.core.layout import layouts
from reslab.core.trees import named_leaves
from reslab.observe.probes.gradient import sum_of_squares
from reslab.train.state import Setup, TrainState, parameter_plans


def layer_metrics(
    setup: Setup, state: TrainState, gradients: Any, updates: Any, opt_state: Any
) -> dict[str, jax.Array]:
    """Learning rate, size of the update and gradient norm of every layer.

    Args:
      setup: Model, optimizer and config.
      state: The state before the step.
      gradients: Of the parameters.
      updates: What the optimizer made of them.
      opt_state: The optimizer's state after it.

    Returns:
      By layer: `learning_rate`, the mean over its kernels, with what scalings and
      optimizers such as `heavy_tail` multiply it by; `update_ratio`, the norm of the
      update divided by the parameters'; `gradient_norm`, before clipping.
    """
    moved = sum_by_layer(sum_of_squares, updates)
    size = sum_by_layer(sum_of_squares, state.params)
    return {
        "learning_rate": _learning_rates(setup, state.step, opt_state, size.shape[0]),
        "update_ratio": jnp.sqrt(moved / jnp.maximum(size, 1e-30)),
        "gradient_norm": jnp.sqrt(sum_by_layer(sum_of_squares, gradients)),
    }


def _learning_rates(
    setup: Setup, step: jax.Array, opt_state: Any, depth: int
) -> jax.Array:
    config, known = setup.config, named_leaves(layouts(setup.boxed_params))
    planned = parameter_plans(config, setup.boxed_params)
    factors = {
        name: leaf
        for name, leaf in named_leaves(opt_state).items()
        if "/factors/" in f"/{name}"
    }
    sums, counts = jnp.zeros(depth), jnp.zeros(depth)
    for name, layout in known.items():
        if layout.kind != "matrix" or not layout.layers:
            continue
        plan, at = planned[name], np.asarray(layout.layers)
        spec = plan.schedule or config.optim.schedule
        schedule = registry.make(
            "schedules", spec, **surroundings.Schedules(steps=config.train.steps)
        )
        rate = 0.0 if plan.freeze else plan.lr * schedule(step)
        scale = plan.factor(step) if callable(plan.factor) else plan.factor
        rates = jnp.broadcast_to(rate * jnp.asarray(scale, jnp.float32), at.shape)
        for path, leaf in factors.items():
            if path.endswith(f"/{name}"):
                # The experts of a layer count as one.
                each = leaf.astype(jnp.float32).reshape(len(at), -1)
                rates = rates * jnp.mean(each, axis=1)
        sums, counts = sums.at[at].add(rates), counts.at[at].add(1.0)
    return sums / jnp.maximum(counts, 1.0)
