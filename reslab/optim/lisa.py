"""LISA: a few layers at a time, drawn at random (Pan et al., 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core.bounds import Count, Seed, bounded
from reslab.optim.base.leaves import Layouts, resolve
from reslab.optim.base.wrapping import depth_of, update_active, wrapper


class LisaState(NamedTuple):
    """State of `lisa`.

    Attributes:
      count: Number of steps so far.
      inner: State of the optimizer inside.
    """

    count: jax.Array
    inner: Any


def active_layers(
    count: jax.Array, depth: int, active: int, every: int, seed: int
) -> jax.Array:
    """Which layers learn at a step: a pure function of the step and the seed."""
    key = jax.random.fold_in(jax.random.key(seed), count // every)
    return jax.random.permutation(key, depth) < active


@bounded
@wrapper("adamw")
def lisa(
    inner: optax.GradientTransformation,
    *,
    layouts: Layouts = None,
    active: Count = 2,
    every: Count = 20,
    seed: Seed = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains `active` layers at a time, redrawn every `every` steps.

    Embedding, head and final norm are always trained. Other layers keep their weights
    and their optimizer state bit for bit, but for the number of steps that a method
    counts for all its parameters (Adam's correction). The first draw is at
    step 0. The choice of layers depends on the seed and the step alone, so all devices
    agree and a resumed run continues exactly. The whole gradient is computed:
    time is not saved, nor memory.

    Reference: Pan et al., 2024, https://arxiv.org/abs/2403.17919, Algorithm 1; the
    code in LMFlow was read, and draws with NumPy's generator.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters, which says where layers are.
      inner: Spec of the optimizer.
      active: How many layers learn at a time.
      every: Steps between two draws.
      seed: Chooses the draws.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: If a number is below 1.
    """
    around = optax.with_extra_args_support(inner)

    def init(params):
        return LisaState(jnp.zeros((), jnp.int32), around.init(params))

    def update(updates, state, params=None, **extra):
        known = resolve(layouts, updates)
        depth = depth_of(known)
        chosen = active_layers(state.count, depth, active, every, seed)
        moves, inner_state = update_active(
            around, chosen, known, updates, state.inner, params, **extra
        )
        return moves, LisaState(state.count + 1, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


build = lisa
