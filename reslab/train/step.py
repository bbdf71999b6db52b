"""One training step: a pure function of the state and a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reslab.core.freezing import freezing_layers
from reslab.core.layout import layouts
from reslab.core.model_state import (
    BATCH_STATS,
    GRADIENT_STATS,
    ModelState,
    model_state_of,
)
from reslab.optim.base.leaves import wide
from reslab.optim.base.wrapping import cuts_of
from reslab.optim.groups import stop_frozen
from reslab.optim.guard import GuardState
from reslab.parallel.compiler import compiler_options
from reslab.parallel.mesh import batch_sharding, replicated
from reslab.train.layers import layer_metrics
from reslab.train.state import Setup, TrainState, parameter_plans
from reslab.train.tasks import Batch

# Loss, gradient norm, bad steps in a row, first non-finite leaf.
HEALTH = "health"

Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[TrainState, Metrics]]
Objective = Callable[
    [Any, ModelState, ModelState, Batch, jax.Array, jax.Array],
    tuple[jax.Array, tuple[Metrics, ModelState]],
]


def step_key(seed: int | jax.Array, step: jax.Array) -> jax.Array:
    """The random key of a step: of nothing else, so that a resumed run is exact."""
    return jax.random.fold_in(jax.random.key(seed), step)


def training_objective(setup: Setup) -> Objective:
    """Builds what training minimizes: the mean over the units that count.

    Its gradient by frozen parameters is zero, and is not computed.

    Args:
      setup: Model, task and config.

    Returns:
      A function `(params, gradient_stats, others, batch, total_units, key) ->
      (objective, (sums, batch_stats))`, of a batch that may be a part of
      `total_units` units; `others` is the remaining model state.
    """
    planned = parameter_plans(setup.config, setup.boxed_params)
    known = layouts(setup.boxed_params)

    def objective(params, gradient_stats, others, batch, total_units, key):
        params = stop_frozen(params, planned, known)
        variables = model_state_of({**others, GRADIENT_STATS: gradient_stats})
        total, sums, written = setup.task.loss_sums(
            setup.model,
            {"params": params, **variables},
            batch,
            is_training=True,
            key=key,
        )
        return total / total_units.astype(total.dtype), (sums, written)

    return objective


def gradient_in_parts(
    objective: Objective, parts: int
) -> Callable[[Any, ModelState, Batch, jax.Array], tuple[Any, ModelState, Metrics]]:
    """The gradient of an objective over a batch, part after part.

    Every part starts from the same statistics; what the parts leave is averaged, so
    that a step updates them once, whatever the number of its parts. The gradient by
    `gradient_stats` is their next value (see `reslab.core.model_state`). Each part
    draws random numbers of its own.

    Args:
      objective: As `training_objective` gives; its first argument may be any tree.
      parts: Number of parts of the batch whose gradients are added up.

    Returns:
      A function `(tree, model_state, batch, key) -> (gradient, model_state, sums)`.
    """
    differentiate = jax.grad(objective, argnums=(0, 1), has_aux=True)

    def accumulated(tree, model_state, batch, key):
        total_units = jnp.maximum(jnp.sum(batch["loss_mask"].astype(jnp.float32)), 1)
        others = dict(model_state)
        before = others.pop(GRADIENT_STATS, {})

        def of_part(part, key):
            found = differentiate(tree, before, others, part, total_units, key)
            (gradient, gradient_stats), (sums, batch_stats) = found
            return gradient, sums, (gradient_stats, batch_stats)

        if parts == 1:
            gradient, sums, after = of_part(batch, key)
        else:

            def add(totals, part):
                return jax.tree.map(jnp.add, totals, of_part(*part)), ()

            rows = jax.tree.map(lambda x: _split_rows(x, parts), batch)
            split = rows, jax.random.split(key, parts)
            shapes = jax.eval_shape(of_part, *jax.tree.map(lambda x: x[0], split))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (gradient, sums, after), _ = jax.lax.scan(add, zeros, split)
            after = jax.tree.map(lambda total: _averaged(total, parts), after)
        gradient_stats, batch_stats = after
        after = {BATCH_STATS: batch_stats, GRADIENT_STATS: gradient_stats}
        return gradient, model_state_of({**others, **after}), sums

    return accumulated


def apply_optimizer(
    setup: Setup,
    gradients: Any,
    state: TrainState,
    batch: Batch,
    loss: jax.Array | None = None,
) -> tuple[Any, Any]:
    """Computes the optimizer's updates from gradients.

    Beside them it is given `value_fn`, the loss by the parameters on the first part
    of the batch, the batch's `loss`, and the task's `optimizer_inputs`, for those that
    ask.

    Args:
      setup: Model, optimizer, task and config.
      gradients: Of the parameters.
      state: The train state before the step.
      batch: The batch that the gradients are of.
      loss: Its loss, where that is known.

    Returns:
      The updates and the new state of the optimizer.
    """
    rows = setup.config.data.batch // setup.config.train.accumulate

    def value_fn(some):
        # The optimizer of some parameters receives only those.
        whole = jax.tree.map(
            lambda p, s: p if isinstance(s, optax.MaskedNode) else s,
            state.params,
            some,
        )
        part = {key: value[:rows] for key, value in batch.items()}
        variables = {**state.variables, "params": whole}
        total, sums, _ = setup.task.loss_sums(setup.model, variables, part)
        return total / jnp.maximum(sums[setup.task.unit], 1)

    # optax counts on implicit promotion (b1 ** step), also where the caller has
    # forbidden it.
    with jax.numpy_dtype_promotion("standard"):
        return setup.optimizer.update(
            gradients,
            state.opt_state,
            state.params,
            value_fn=value_fn,
            loss=loss,
            **setup.task.optimizer_inputs(setup.model, batch),
        )


def make_step(setup: Setup) -> Step:
    """Builds the training step of a setup.

    With `train.accumulate`, the gradients of that many parts of the batch are
    added up before the update; each unit weighs the same whatever its part.

    Args:
      setup: Model, optimizer, task and config.

    Returns:
      A pure function `(state, batch) -> (state, metrics)`; the metrics are scalars:
      those of the task, `learning_rate` and `gradient_norm`, with a guard also
      `skipped_steps`; and `HEALTH`, an array of what every step is judged by. With
      `train.log_layers` there is an array for each of `layer_metrics`, too. A third
      argument takes the place of the config's seed.
    """
    gradient = gradient_in_parts(
        training_objective(setup), setup.config.train.accumulate
    )
    config = setup.config
    cuts = cuts_of(config.optim.name, setup.model.depth, config.train.steps)

    def gradient_above(cut):
        def cut_gradient(*inputs):
            with freezing_layers(cut):
                return gradient(*inputs)

        return cut_gradient

    def step(
        state: TrainState, batch: Batch, seed: int | jax.Array = config.seed
    ) -> tuple[TrainState, Metrics]:
        key = step_key(seed, state.step)
        inputs = state.params, state.model_state, batch, key
        if cuts is None:
            gradients, model_state, sums = gradient(*inputs)
        else:
            branches = [gradient_above(cut) for cut in cuts.values]
            chosen = cuts.at_step(state.step)
            gradients, model_state, sums = jax.lax.switch(chosen, branches, *inputs)
        metrics = setup.task.metrics(sums)
        updates, opt_state = apply_optimizer(
            setup, gradients, state, batch, metrics["loss"]
        )
        with jax.numpy_dtype_promotion("standard"):
            learning_rate = jnp.asarray(setup.learning_rate(state.step))
        metrics = {
            **metrics,
            "learning_rate": learning_rate,
            "gradient_norm": optax.tree.norm(jax.tree.map(wide, gradients)),
        }
        bad_steps = jnp.zeros((), jnp.int32)
        if isinstance(opt_state, GuardState):
            bad_steps = opt_state.in_a_row
            metrics["skipped_steps"] = opt_state.skipped
            # State that the model writes beside its parameters is also invalid.
            model_state = jax.tree.map(
                lambda new, old: jnp.where(bad_steps == 0, new, old),
                model_state,
                state.model_state,
            )
        metrics[HEALTH] = jnp.stack(
            [
                value.astype(jnp.float32)
                for value in (
                    *(metrics["loss"], metrics["gradient_norm"], bad_steps),
                    _first_not_finite(gradients),
                )
            ]
        )
        if config.train.log_layers:
            with jax.numpy_dtype_promotion("standard"):
                found = layer_metrics(setup, state, gradients, updates, opt_state)
            metrics |= {f"layers/{key}": value for key, value in found.items()}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, model_state), metrics

    return step


def _first_not_finite(gradients: Any) -> jax.Array:
    """The index of the first leaf whose squares add up to no finite number, or -1.

    The sums are those of the gradient norm, which the compiler makes once.
    """
    sums = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)]
    is_bad = ~jnp.stack([jnp.isfinite(total) for total in sums])
    return jnp.where(jnp.any(is_bad), jnp.argmax(is_bad), -1)


def jit_step(setup: Setup, step: Step | None = None) -> Any:
    """The training step as a run compiles it: sharded, and in place.

    Args:
      setup: Model, optimizer, task, config and mesh.
      step: The step; `make_step`'s if None.

    Returns:
      The step, jitted; the state that it is given is donated. Call or lower it with
      the setup's mesh in use.
    """
    state_sharding = jax.tree.map(lambda leaf: leaf.sharding, setup.shapes)
    return jax.jit(
        step or make_step(setup),
        in_shardings=(state_sharding, batch_sharding(setup.mesh)),
        out_shardings=(state_sharding, replicated(setup.mesh)),
        # Repeats the step on the same inputs to find the source of a NaN.
        donate_argnums=() if jax.config.values["jax_debug_nans"] else 0,
        compiler_options=compiler_options(setup.mesh.devices.flat[0].platform),
    )


def _averaged(total: jax.Array, parts: int) -> jax.Array:
    """The mean over parts; counters, which all parts advance alike, stay whole."""
    return (
        total / parts if jnp.issubdtype(total.dtype, jnp.floating) else total // parts
    )


def _split_rows(x: jax.Array, parts: int) -> jax.Array:
    """(batch, ...) to (parts, batch / parts, ...), each part from every device."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
