"""Steps that would spoil a run are left out: those not finite, and spikes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core import registry
from reslab.core.errors import ReslabError, nearest
from reslab.optim.base.leaves import wide

# Spikes are detected once this many steps are recorded.
KNOWN = 16
# The spread is at least this share of the mean, so that a constant loss does not
# trigger.
FLOOR = 1e-3
# A gradient norm counts as a spike above this multiple of the largest in the window.
# Norms of small batches have long tails: by deviations alone, 122 of 10,000 steps of a
# small model that trained well were left out, with this one (see docs/RELIABILITY.md).
BEYOND = 4.0


class Policy(NamedTuple):
    """Policy for a bad step.

    Attributes:
      name: `halt` ends the run at a loss or gradient that is not finite; `skip`
        leaves the step out; `rollback` restores the last checkpoint and continues
        with the data after the bad step.
      window: Number of accepted steps that define the usual range.
      sigma: Standard deviations above their mean that make a spike.
      limit: Bad steps in a row that `skip` bears, or times that `rollback` goes back.
    """

    name: str
    window: int = 128
    sigma: float = 6.0
    limit: int = 0


_LIMITS = {"halt": 0, "skip": 10, "rollback": 3}


def parse_policy(spec: str) -> Policy:
    """Parses `halt`, `skip(window=128, sigma=6.0, limit=10)` or `rollback(limit=3)`.

    Raises:
      ReslabError: If it is anything else.

    >>> parse_policy("skip(sigma=4.0)")
    Policy(name='skip', window=128, sigma=4.0, limit=10)
    """
    field = "train.on_bad_step"
    name, arguments = registry.parse(spec).name, registry.parse(spec).arguments
    if name not in _LIMITS:
        raise ReslabError(f"{field}: unknown {name!r}", hint=nearest(name, _LIMITS))
    accepted = Policy._fields[1:] if name != "halt" else ()
    for key, value in arguments.items():
        if key not in accepted:
            raise ReslabError(
                f"{field}: {name} has no argument {key!r}",
                hint=nearest(key, accepted) if accepted else "no arguments",
            )
        least = {"window": KNOWN, "sigma": 1.0, "limit": 1}[key]
        kinds = (int, float) if key == "sigma" else (int,)
        if type(value) not in kinds or not least <= value < float("inf"):
            raise ReslabError(
                f"{field}: {key}", expected=f"at least {least}", got=repr(value)
            )
    return Policy(name, **{"limit": _LIMITS[name], **arguments})


class GuardState(NamedTuple):
    """State of the guard, saved with the optimizer so that resuming is exact.

    Attributes:
      inner: The optimizer's state.
      losses: Of the last accepted steps, a ring.
      norms: Gradient norms of the same.
      accepted: Steps accepted so far.
      skipped: Steps left out so far.
      in_a_row: Steps left out since the last accepted one.
      rollbacks: How often the run went back.
    """

    inner: Any
    losses: jax.Array
    norms: jax.Array
    accepted: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array
    rollbacks: jax.Array


def guarded(
    inner: optax.GradientTransformationExtraArgs, policy: Policy
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that a bad step leaves as it was.

        bad = not finite(loss, norm)
              or loss > mean + sigma * max(std, 0.001 |mean|)
              or norm > max(the same of norms, 4 * largest)

    Mean, standard deviation and largest are over a window of accepted steps. Rejected
    values never enter it: one NaN among them would make every comparison false.

    Args:
      inner: The optimizer; its update is given zeros in place of a bad gradient.
      policy: Window and threshold.

    Returns:
      The transformation; its update takes `loss`, without which only the norm of the
      gradient is judged.
    """

    def init(params: Any) -> GuardState:
        ring, zero = jnp.zeros(policy.window, jnp.float32), jnp.zeros((), jnp.int32)
        return GuardState(inner.init(params), ring, ring, zero, zero, zero, zero)

    def is_usual(
        value: jax.Array, ring: jax.Array, accepted: jax.Array, *, is_norm: bool
    ) -> jax.Array:
        count = jnp.minimum(accepted, policy.window).astype(jnp.float32)
        is_known = jnp.arange(policy.window) < accepted
        mean = jnp.sum(jnp.where(is_known, ring, 0)) / jnp.maximum(count, 1)
        squares = jnp.sum(jnp.where(is_known, jnp.square(ring - mean), 0))
        spread = jnp.sqrt(squares / jnp.maximum(count - 1, 1))
        spread = jnp.maximum(spread, FLOOR * jnp.abs(mean))
        most = mean + policy.sigma * spread
        if is_norm:  # Unused entries of the ring are zeros.
            most = jnp.maximum(most, BEYOND * jnp.max(ring))
        return jnp.isfinite(value) & ((value <= most) | (accepted < KNOWN))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        **extra: Any,
    ) -> tuple[Any, GuardState]:
        loss = extra.pop("loss", None)
        norm = optax.tree.norm(jax.tree.map(wide, updates))
        values = {"norms": norm.astype(jnp.float32)}
        if loss is not None:
            values["losses"] = loss.astype(jnp.float32)
        is_good = jnp.asarray(True)
        for key, value in values.items():
            ring, is_norm = getattr(state, key), key == "norms"
            is_good &= is_usual(value, ring, state.accepted, is_norm=is_norm)
        zeroed = jax.tree.map(lambda g: jnp.where(is_good, g, 0), updates)
        moves, after = inner.update(zeroed, state.inner, params, **extra)
        at = state.accepted % policy.window
        rings = {
            key: jnp.where(is_good, ring.at[at].set(values[key]), ring)
            for key in values
            for ring in (getattr(state, key),)
        }
        bad = 1 - is_good.astype(jnp.int32)
        new_state = state._replace(
            inner=_choose(is_good, after, state.inner),
            accepted=state.accepted + 1 - bad,
            skipped=state.skipped + bad,
            in_a_row=(state.in_a_row + 1) * bad,
            **rings,
        )
        return _choose(is_good, moves, jax.tree.map(jnp.zeros_like, moves)), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _choose(is_good: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(is_good, a, b), new, old)
