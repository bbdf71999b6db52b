"""Drop-Muon: each step trains the layers above a random cut (2025)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reslab.core.bounds import Count, NonNegative, Seed, bounded
from reslab.optim.base.leaves import Layouts, map_leaves, resolve
from reslab.optim.base.wrapping import depth_of, update_active, wrapper


class DropState(NamedTuple):
    """State of `drop_muon`.

    Attributes:
      count: Number of steps so far.
      inner: State of the optimizer inside.
    """

    count: jax.Array
    inner: Any


class Cuts(NamedTuple):
    """Depths at which the backward pass may stop, and the choice of each step.

    Attributes:
      values: Numbers of first layers that are frozen, ascending from 0.
      logits: Weights of the values at the start and at the end of a run, as logits.
      steps: Length of the run.
      seed: Chooses the draws.
    """

    values: tuple[int, ...]
    logits: tuple[np.ndarray, np.ndarray]
    steps: int
    seed: int

    def at_step(self, step: jax.Array) -> jax.Array:
        """Which of the values holds at a step: a function of it and the seed."""
        progress = jnp.clip(step / self.steps, 0.0, 1.0).astype(jnp.float32)
        begin, end = (jnp.asarray(x, jnp.float32) for x in self.logits)
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        return jax.random.categorical(key, begin + (end - begin) * progress)


def cuts(
    depth: int, steps: int, *, buckets: int = 4, shift: float = 0.0, seed: int = 0
) -> Cuts:
    """The cuts of a model; see `build` for the arguments."""
    count = min(buckets, max(depth, 1))
    values = tuple(int(value) for value in np.arange(count) * depth / count)
    places = np.asarray(values, np.float64)
    logits = shift * (depth - 1 - places), shift * places
    return Cuts(values, logits, max(steps, 1), seed)


@bounded
@wrapper("muon", cuts=cuts)
def drop_muon(
    inner: optax.GradientTransformation,
    *,
    layouts: Layouts = None,
    steps: int = 1,
    buckets: Count = 4,
    shift: NonNegative = 0.0,
    seed: Seed = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains, in each step, the layers above a cut that is drawn at random.

    Layers below the cut keep weights and optimizer state bit for bit, but for a count
    of steps that all share; the embedding
    learns only where the cut is below the first layer; head and final norm always.
    Under `reslab train` the backward pass stops at the cut: the step holds a program
    for each of the `buckets` cuts and runs one (`lax.switch`), so that the gradient
    of frozen layers is never computed. Compile time grows with the buckets.

    With `shift` 0 all cuts are as likely. Above, low cuts are likelier at the start
    of a run and high ones at its end: weights exp(shift ((1 - p) (L - 1 - i) + p i))
    of a cut at layer i, at the fraction p of the run.

    Reference: Drop-Muon, 2025, https://arxiv.org/abs/2510.02239, Algorithm 1 with
    randomized progressive training. The default takes Muon's direction of fixed size;
    `inner='sharp'` is the paper's sharp operator, whose factor is the nuclear norm.
    Property only, no authors' code: with the cut at 0 a step is the inner optimizer's,
    and gradients above a cut are those of the whole backward pass.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters, which says where layers are.
      steps: Length of the run.
      inner: Spec of the optimizer.
      buckets: Number of places where the cut may be, evenly over depth.
      shift: How much cuts move up during the run.
      seed: Chooses the draws.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: If there is no bucket.
    """
    around = optax.with_extra_args_support(inner)

    def init(params):
        return DropState(jnp.zeros((), jnp.int32), around.init(params))

    def update(updates, state, params=None, **extra):
        known = resolve(layouts, updates)
        depth = depth_of(known)
        plan = cuts(depth, steps, buckets=buckets, shift=shift, seed=seed)
        resting = jnp.asarray(plan.values)[plan.at_step(state.count)]
        active = jnp.arange(depth) >= resting
        # The embedding lies below the first layer: as a stack of one, it learns only in
        # steps without frozen layers.
        below = map_leaves(lambda layout, _: layout.kind == "embedding", known, updates)
        moves, inner_state = update_active(
            *(around, active, known, updates, state.inner, params),
            bottom=below,
            **extra,
        )
        return moves, DropState(state.count + 1, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


build = drop_muon
