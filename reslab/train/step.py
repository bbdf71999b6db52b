"""One training step: a pure function of the state and a batch."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reslab.models.lm import LanguageModel
from reslab.parallel.mesh import batch_sharding, replicated
from reslab.train.state import Setup, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Objective = Callable[[Any, Batch, jax.Array], tuple[jax.Array, Metrics]]


def loss_sums(
    model: LanguageModel,
    params: Any,
    batch: Batch,
    byte_lengths: np.ndarray,
    z_loss: float = 0.0,
) -> tuple[jax.Array, Metrics]:
    """Adds up the losses of the tokens that count.

        objective = sum over tokens of nll + z_loss * log_normalizer ** 2

    Args:
      model: The model.
      params: Its parameters.
      batch: `tokens`, `targets`, `positions`, `segment_ids` and `loss_mask`, each
        (batch, length).
      byte_lengths: Bytes that each token id stands for.
      z_loss: Factor of the second term (Chowdhery et al., 2022,
        https://arxiv.org/abs/2204.02311, Section 5).

    Returns:
      The objective, and the sums `nll` (nats), `tokens` and `bytes`.
    """
    losses: Any = model.apply(
        {"params": params},
        batch["tokens"],
        batch["targets"],
        positions=batch["positions"],
        segments=batch["segment_ids"],
        method="losses",
    )
    nll, log_normalizer = losses
    mask = batch["loss_mask"].astype(nll.dtype)
    lengths = jnp.asarray(byte_lengths, nll.dtype)[batch["targets"]]
    total = jnp.sum(nll * mask)
    sums = {
        "nll": total,
        "tokens": jnp.sum(mask),
        "bytes": jnp.sum(lengths * mask),
    }
    if z_loss:
        total = total + z_loss * jnp.sum(jnp.square(log_normalizer) * mask)
    return total, sums


def bits_per_byte(sums: Mapping[str, Any]) -> Any:
    """Compression in bits per byte of text: independent of the tokenizer."""
    return sums["nll"] / (sums["bytes"] * math.log(2))


def training_objective(setup: Setup, byte_lengths: np.ndarray) -> Objective:
    """Builds what training minimizes: the mean over the tokens that count.

    Args:
      setup: Model and config.
      byte_lengths: Bytes that each token id stands for.

    Returns:
      A function `(params, batch, total_tokens) -> (objective, sums)`, of a batch
      that may be a part of `total_tokens` tokens.
    """

    def objective(params, batch, total_tokens):
        total, sums = loss_sums(
            setup.model, params, batch, byte_lengths, setup.config.train.z_loss
        )
        return total / total_tokens.astype(total.dtype), sums

    return objective


def gradient_in_parts(
    objective: Objective, parts: int
) -> Callable[[Any, Batch], tuple[Any, Metrics]]:
    """The gradient of an objective over a batch, part after part.

    Args:
      objective: As `training_objective` gives; its first argument may be any tree.
      parts: Number of parts of the batch whose gradients are added up.

    Returns:
      A function `(tree, batch) -> (gradient, sums)`.
    """
    gradient = jax.grad(objective, has_aux=True)

    def accumulated(tree, batch):
        total_tokens = jnp.maximum(jnp.sum(batch["loss_mask"].astype(jnp.float32)), 1)
        if parts == 1:
            return gradient(tree, batch, total_tokens)

        def add(sums, part):
            return jax.tree.map(jnp.add, sums, gradient(tree, part, total_tokens)), ()

        split = jax.tree.map(lambda x: _split_rows(x, parts), batch)
        first = jax.tree.map(lambda x: x[0], split)
        shapes = jax.eval_shape(gradient, tree, first, total_tokens)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zeros, split)[0]

    return accumulated


def make_step(setup: Setup, byte_lengths: np.ndarray) -> Step:
    """Builds the training step of a setup.

    With `train.accumulate`, the gradients of that many parts of the batch are
    added up before the update; each token weighs the same whatever its part.

    Args:
      setup: Model, optimizer and config.
      byte_lengths: Bytes that each token id stands for.

    Returns:
      A pure function `(state, batch) -> (state, metrics)`; the metrics are
      scalars: `loss`, `bpb`, `learning_rate`, `gradient_norm`.
    """
    gradient = gradient_in_parts(
        training_objective(setup, byte_lengths), setup.config.train.accumulate
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradients, sums = gradient(state.params, batch)
        # optax counts on implicit promotion (b1 ** step), also where the caller
        # has forbidden it.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = setup.optimizer.update(
                gradients, state.opt_state, state.params
            )
            learning_rate = jnp.asarray(setup.learning_rate(state.step))
        metrics = {
            "loss": sums["nll"] / jnp.maximum(sums["tokens"], 1),
            "bpb": bits_per_byte(sums),
            "learning_rate": learning_rate,
            "gradient_norm": optax.tree.norm(gradients),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def jit_step(setup: Setup, byte_lengths: np.ndarray) -> Any:
    """The training step as a run compiles it: sharded, and in place.

    Args:
      setup: Model, optimizer, config and mesh.
      byte_lengths: Bytes that each token id stands for.

    Returns:
      `make_step`'s function, jitted; the state that it is given is donated. Call
      or lower it with the setup's mesh in use.
    """
    state_sharding = jax.tree.map(lambda leaf: leaf.sharding, setup.shapes)
    return jax.jit(
        make_step(setup, byte_lengths),
        in_shardings=(state_sharding, batch_sharding(setup.mesh)),
        out_shardings=(state_sharding, replicated(setup.mesh)),
        donate_argnums=0,
    )


def _split_rows(x: jax.Array, parts: int) -> jax.Array:
    """(batch, ...) to (parts, batch / parts, ...), each part from every device."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
