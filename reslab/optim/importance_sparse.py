"""IST: layers drawn by their importance, which is learned (Yao et al., 2024)."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core.bounds import Bounds, Count, NonNegative, Repeats, Seed, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import scaled
from reslab.optim.base.leaves import Layouts, map_leaves, resolve
from reslab.optim.base.wrapping import depth_of, update_active, wrapper


class ImportanceState(NamedTuple):
    """State of `importance_sparse`.

    Attributes:
      count: Number of steps so far.
      scores: Of every layer (layers,); a larger score is less important.
      inner: State of the optimizer inside.
    """

    count: jax.Array
    scores: jax.Array
    inner: Any


def drawn(key: jax.Array, logits: jax.Array, count: int) -> jax.Array:
    """Draws layers without replacement, with weights sigmoid(logits)."""
    noisy = jax.nn.log_sigmoid(logits) + jax.random.gumbel(key, logits.shape)
    return jnp.zeros(logits.shape, bool).at[jax.lax.top_k(noisy, count)[1]].set(True)


def learned_scores(
    scores: jax.Array, suppressed: jax.Array, losses: jax.Array, rate: float = 10.0
) -> jax.Array:
    """Estimates the importance of layers from suppressed ones.

        r_k = exp(-loss_k) - mean(exp(-loss));  I_i += rate r_k p_i (1 - p_i)

    for every layer i that was suppressed in k, with p = sigmoid(I) of before.

    Args:
      scores: Scores I (layers,).
      suppressed: Which layers were suppressed (trials, layers).
      losses: The losses with them suppressed (trials,).
      rate: Size of the steps.

    Returns:
      The new scores.
    """
    rewards = jnp.exp(-losses)
    rewards = rewards - jnp.mean(rewards)
    p = jax.nn.sigmoid(scores)
    given = jnp.sum(jnp.where(suppressed, rewards[:, None], 0.0), axis=0)
    return scores + rate * given * p * (1 - p)


@bounded
@wrapper("adamw")
def importance_sparse(
    inner: optax.GradientTransformation,
    *,
    layouts: Layouts = None,
    share: Annotated[float, Bounds(above=0, most=1)] = 0.25,
    every: Count = 10,
    trials: Repeats = 3,
    suppressed: Annotated[float, Bounds(above=0, most=1)] = 0.5,
    factor: NonNegative = 0.25,
    rate: NonNegative = 10.0,
    seed: Seed = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains a share of the layers in each step, the important ones more often.

    Each step draws the layers that learn, with weights sigmoid(-score). Every
    `every` steps the scores learn: for some draws of layers, with weights
    sigmoid(score), the response of those is suppressed by `factor`, and a layer whose
    suppression hurts less than another's is less important. Embedding, head and
    final norm are always trained; frozen layers keep weights and state bit for bit, but
    for a count of steps that all share.

    In the paper what learns and what is suppressed are adapters (LoRA). Here it is
    the layer: kernels that write to the stream are multiplied by `factor`. The losses
    are those of the training batch, not of one that was held back.

    Reference: Yao et al., 2024, https://arxiv.org/abs/2410.11772, Algorithm 1. The
    scores equal those of the authors' code to 1e-6, given its draws and losses.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters, which says where layers are.
      inner: Spec of the optimizer.
      share: Share of the layers that learn in a step.
      every: Steps between two lessons of the scores.
      trials: Suppressions in a lesson.
      suppressed: Share of the layers that a trial suppresses.
      factor: Factor on their response.
      rate: Size of the scores' steps.
      seed: Chooses the draws.

    Returns:
      The gradient transformation; `update` takes `value_fn`.

    Raises:
      ReslabError: If a number is out of range, or `value_fn` is missing.
    """
    around = optax.with_extra_args_support(inner)

    def init(params):
        depth = depth_of(resolve(layouts, params))
        scores = jnp.zeros((depth,), jnp.float32)
        return ImportanceState(jnp.zeros((), jnp.int32), scores, around.init(params))

    def update(updates, state, params=None, *, value_fn=None, **extra):
        if value_fn is None:
            raise ReslabError(
                "importance_sparse needs the loss itself to learn which layers matter",
                expected="`value_fn`, the loss as a function of the parameters",
                got="no such argument of `update`",
                hint="update(gradients, state, params, value_fn=loss)",
            )
        known = resolve(layouts, updates)
        depth = depth_of(known)
        if not depth:
            moves, inner_state = around.update(updates, state.inner, params, **extra)
            return moves, state._replace(inner=inner_state)
        key = jax.random.fold_in(jax.random.key(seed), state.count)
        keys = jax.random.split(key, trials + 1)

        def weakened(chosen):
            factors = jnp.where(chosen, factor, 1.0)

            def one(layout, p):
                writes = layout.names and layout.names[-1] == "embed"
                if layout.kind != "matrix" or not layout.layers or not writes:
                    return p
                return scaled(p, layout.by_layer(factors, p))

            return value_fn(map_leaves(one, known, params))

        def learn(scores):
            count = max(1, int(suppressed * depth))
            chosen = jax.vmap(lambda k: drawn(k, scores, count))(keys[1:])
            losses = jax.lax.map(weakened, chosen).astype(scores.dtype)
            return learned_scores(scores, chosen, losses, rate)

        is_due = (state.count > 0) & (state.count % every == 0)
        scores = jax.lax.cond(is_due, learn, lambda s: s, state.scores)
        active = drawn(keys[0], -scores, max(1, int(share * depth)))
        moves, inner_state = update_active(
            around,
            *(active, known, updates, state.inner, params),
            value_fn=value_fn,
            **extra,
        )
        return moves, ImportanceState(state.count + 1, scores, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


build = importance_sparse
