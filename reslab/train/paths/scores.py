"""Scores of a path: how well a model does on examples along it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core import imports, registry
from reslab.core.errors import ReslabError, nearest
from reslab.train.tasks.graded import Graded

# (logits (batch, length, vocabulary), batch) to scores (batch,), from 0 to 1.
Score = Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]


def correct(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """1 where every token that counts is the most likely one, else 0."""
    is_wrong = (jnp.argmax(logits, -1) != batch["targets"]) & batch["loss_mask"]
    return 1.0 - jnp.any(is_wrong, axis=-1).astype(jnp.float32)


def probability(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The geometric mean of the probabilities of the tokens that count."""
    log = jnp.take_along_axis(
        jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1
    )
    mask = batch["loss_mask"].astype(log.dtype)
    total = jnp.sum(log[..., 0] * mask, axis=-1)
    return jnp.exp(total / jnp.maximum(jnp.sum(mask, axis=-1), 1))


_SCORES = {"correct": correct, "probability": probability}


def usual(task: Any) -> str:
    """The score of a task: problems are solved or not, text is likely."""
    return "correct" if isinstance(task, Graded) else "probability"


def score_of(name: str) -> Score:
    """A score by its name: "correct", "probability", or a module with `score`.

    Raises:
      ReslabError: If no score has this name.
    """
    if name in _SCORES:
        return _SCORES[name]
    what = f"score {name!r}"
    if "." not in name:
        hint = nearest(name, _SCORES)
        raise ReslabError(f"unknown {what}", hint=f"{hint}, or a module such as lab.x")
    imports.allow(name)
    return registry.own_module(what, name, "score").score
