"""Routing of tokens to experts: whom each token asks, and what balances them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Experts of a group whose scores make the group's own.
_BEST_OF_GROUP = 2


class Choice(NamedTuple):
    """The experts of every token.

    Attributes:
      experts: Their numbers (..., chosen), int32.
      weights: Their weights in the output (..., chosen).
    """

    experts: jax.Array
    weights: jax.Array


def choose(
    scores: jax.Array,
    chosen: int,
    *,
    bias: jax.Array | None = None,
    groups: int = 1,
    chosen_groups: int = 1,
    is_renormalized: bool = True,
    scale: float = 1.0,
) -> Choice:
    """Chooses the experts with the highest scores.

    The bias counts for the choice alone. Of several groups, those are kept whose two
    best experts have the largest sum.

    Args:
      scores: Scores (..., experts).
      chosen: Experts of a token.
      bias: Added for the choice (experts,), or None.
      groups: Groups of equally many neighbouring experts.
      chosen_groups: Groups that a token may choose from.
      is_renormalized: Whether the weights of a token sum to 1 before `scale`.
      scale: Factor on the weights.
    """
    ranking = scores
    if bias is not None:
        ranking = scores + jnp.broadcast_to(bias.astype(scores.dtype), scores.shape)
    if chosen_groups < groups:
        shape = (*scores.shape[:-1], groups, scores.shape[-1] // groups)
        grouped = ranking.reshape(shape)
        best = jax.lax.top_k(grouped, min(_BEST_OF_GROUP, shape[-1]))[0].sum(-1)
        kept = jax.lax.top_k(best, chosen_groups)[1]
        is_kept = jax.nn.one_hot(kept, groups, dtype=bool).any(-2)
        ranking = jnp.where(is_kept[..., None], grouped, -jnp.inf).reshape(scores.shape)
    experts = jax.lax.top_k(ranking, chosen)[1]
    weights = jnp.take_along_axis(scores, experts, axis=-1)
    if is_renormalized:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
    return Choice(experts, weights * scale)


def load(experts: jax.Array, count: int, mask: jax.Array) -> jax.Array:
    """Share of the choices of all tokens that fall on each expert (count,).

    Args:
      experts: Chosen experts (..., chosen).
      count: Number of experts.
      mask: Which tokens count (...), 0 or 1 in the dtype of the result.
    """
    hits = jax.nn.one_hot(experts, count, dtype=mask.dtype).sum(-2)
    total = jnp.sum(hits * mask[..., None], axis=tuple(range(hits.ndim - 1)))
    return total / jnp.maximum(jnp.sum(total), 1.0)


def balance(scores: jax.Array, share: jax.Array, mask: jax.Array) -> jax.Array:
    """The loss that is least where experts have equal shares; 1 there.

        experts * sum_e share_e mean_e,    mean_e = mean over tokens of e's score

    with scores that sum to 1 for each token. Reference: Fedus et al., 2021,
    https://arxiv.org/abs/2101.03961, Eq. 4, divided by the number of choices.

    Args:
      scores: Scores (..., experts).
      share: Shares of the experts (experts,).
      mask: Which tokens count (...).
    """
    scores = scores / jnp.sum(scores, axis=-1, keepdims=True)
    axes = tuple(range(scores.ndim - 1))
    mean = jnp.sum(scores * mask[..., None], axis=axes)
    mean = mean / jnp.maximum(jnp.sum(mask), 1.0)
    return scores.shape[-1] * jnp.sum(jax.lax.stop_gradient(share) * mean)


def balance_of_rows(
    scores: jax.Array, experts: jax.Array, mask: jax.Array
) -> jax.Array:
    """The mean over rows of `balance`, each row with its own shares.

    Reference: DeepSeek-AI, 2024, https://arxiv.org/abs/2405.04434, Eq. 12, of rows in
    place of batches.

    Args:
      scores: Scores (rows, length, experts).
      experts: Chosen experts (rows, length, chosen).
      mask: Which tokens count (rows, length).
    """

    def of_row(scores, experts, mask):
        return balance(scores, load(experts, scores.shape[-1], mask), mask)

    return jnp.mean(jax.vmap(of_row)(scores, experts, mask))


def entropy(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean entropy of the scores of a token, in nats."""
    p = scores / jnp.sum(scores, axis=-1, keepdims=True)
    each = -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny)), axis=-1)
    return jnp.sum(each * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def places(experts: jax.Array, count: int, mask: jax.Array) -> jax.Array:
    """Number of each choice among those of its expert, from 0, in order of tokens.

    Earlier tokens come first, so none is displaced by a later one.

    Args:
      experts: Chosen experts (rows, length, chosen).
      count: Number of experts.
      mask: Which tokens count (rows, length).

    Returns:
      Numbers (rows, length, chosen), int32.
    """
    rows, length, chosen = experts.shape
    hits = jax.nn.one_hot(experts, count, dtype=jnp.int32)
    hits = (hits * mask[..., None, None].astype(jnp.int32)).reshape(
        rows, length * chosen, count
    )
    before = jnp.cumsum(hits, axis=1) - hits
    flat = experts.reshape(rows, length * chosen, 1)
    return jnp.take_along_axis(before, flat, axis=2).reshape(experts.shape)
