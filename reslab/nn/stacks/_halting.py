"""Halting: distributions over passes, and how far they are from a prior."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

# Logarithms of probabilities end here.
_LEAST = 1e-8


def halting_distribution(chances: jax.Array) -> jax.Array:
    """Probabilities to halt after each pass.

        p_n = lambda_n * prod_(j < n) (1 - lambda_j),    lambda_N = 1

    Args:
      chances: The chance lambda_n to halt after each pass, if not before (passes, ...).

    Returns:
      Probabilities (passes, ...) that sum to one.
    """
    going_on = jnp.cumprod(1 - chances[:-1], axis=0)
    first = jnp.ones_like(chances[:1])
    before = jnp.concatenate([first, going_on])
    return before * jnp.concatenate([chances[:-1], first])


def prior(
    kind: Literal["geometric", "closed", "normal"], passes: int, rate: float
) -> jax.Array:
    """A prior over passes, in float32 (passes,).

    Args:
      kind: "geometric", cut off after the last pass; "closed", with the rest in the
        last pass; or "normal" around 1 / rate, with a variance of a half.
      passes: Number of passes.
      rate: Chance of the prior to halt after a pass.
    """
    steps = np.arange(passes)
    if kind == "normal":
        found = np.exp(-np.square(steps + 1 - 1 / rate))
        found /= np.sum(found)
    else:
        found = rate * (1 - rate) ** steps
    if kind == "closed":
        found[-1] = 1 - np.sum(found[:-1])
    return jnp.asarray(found, jnp.float32)


def divergence(
    p: jax.Array,
    expected: jax.Array,
    direction: Literal["p_to_prior", "prior_to_p"],
) -> jax.Array:
    """Kullback-Leibler divergence of distributions over passes.

    Args:
      p: Probabilities (passes, ...).
      expected: The prior (passes,).
      direction: "p_to_prior", KL(p || prior) of the paper, or "prior_to_p", KL(prior ||
        p), which the published implementations compute.

    Returns:
      The divergence (...).
    """
    expected = expected.astype(p.dtype).reshape(-1, *(1,) * (p.ndim - 1))
    logs = [jnp.log(jnp.maximum(a, _LEAST)) for a in (p, expected)]
    if direction == "p_to_prior":
        return jnp.sum(p * (logs[0] - logs[1]), axis=0)
    return jnp.sum(expected * (logs[1] - logs[0]), axis=0)


def quantile_exit(p: jax.Array, quantile: float) -> jax.Array:
    """The first pass, from 0, by which the chance to have halted is above a quantile.

    Args:
      p: Probabilities (passes, ...).
      quantile: The quantile; 1 is the last pass.
    """
    is_past = jnp.cumsum(p, axis=0) > quantile
    return jnp.where(
        jnp.any(is_past, axis=0), jnp.argmax(is_past, axis=0), p.shape[0] - 1
    )


def features_of(stream: object) -> jax.Array:
    """The mean of all streams (batch, length, embed), for what reads the stream."""
    leaves = [leaf.reshape(-1, *leaf.shape[-3:]) for leaf in jax.tree.leaves(stream)]
    return jnp.mean(jnp.concatenate(leaves), axis=0)


def mean_of_tokens(values: jax.Array, segments: jax.Array | None) -> jax.Array:
    """The mean of (batch, length) over tokens that are in a document."""
    if segments is None:
        return jnp.mean(values)
    is_real = (segments > 0).astype(values.dtype)
    return jnp.sum(values * is_real) / jnp.maximum(jnp.sum(is_real), 1)
