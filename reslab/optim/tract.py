"""TrAct: a first layer that is trained by its activations (Petersen et al., 2024)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from reslab.core.bounds import Positive, bounded
from reslab.core.layout import Layout
from reslab.core.trees import map_named
from reslab.ops.grams import gram, patch_gram
from reslab.optim.base.leaves import Layouts, map_leaves, resolve, wide
from reslab.optim.base.wrapping import wrapper

__all__ = ["build", "gram", "patch_gram", "preconditioned"]


def preconditioned(
    gradient: jax.Array, covariance: jax.Array, damping: float
) -> jax.Array:
    """(X' X / b + damping I)^-1 G for a kernel's gradient (inputs, outputs)."""
    exact = wide(covariance)
    damped = exact + damping * jnp.eye(exact.shape[0], dtype=exact.dtype)
    factor = jax.scipy.linalg.cho_factor(damped)
    return jax.scipy.linalg.cho_solve(factor, wide(gradient)).astype(gradient.dtype)


def _embedding(
    layout: Layout, gradient: jax.Array, tokens: jax.Array, damping: float
) -> jax.Array:
    """The same where inputs are one-hot: X' X / b holds the tokens' frequencies."""
    if layout.kind != "embedding":
        return gradient
    counts = jnp.zeros(gradient.shape[0], wide(gradient).dtype)
    counts = counts.at[tokens.reshape(-1)].add(1.0) / tokens.size
    return (wide(gradient) / (counts + damping)[:, None]).astype(gradient.dtype)


@bounded
@wrapper("adamw")
def tract(
    inner: optax.GradientTransformation,
    *,
    layouts: Layouts = None,
    damping: Positive = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """Gives the first layer the gradient that moves its outputs as asked.

        G <- (X' X / b + damping I)^-1 G

    X holds the b inputs of the layer, of the whole batch. For the embedding of a
    language model, whose inputs are one-hot, X' X / b is the frequency of tokens in
    the batch (`tokens`): rare tokens take larger steps. Elsewhere `update` takes
    `grams`, a matrix for the path of each first kernel: `gram` for linear layers,
    `patch_gram` for convolutions and patch embeddings. The training step gives both,
    the latter from `first_grams` of models of images. A tied embedding's gradient also
    holds the head's. Before clipping; Adam undoes what is common to all entries.

    Reference: Petersen et al., 2024, https://arxiv.org/abs/2410.23970, Eq. 8 (with
    inputs standardized). Linear layers and convolutions equal the authors' code to
    1e-4; one-hot inputs are not in it.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters, which says what is an embedding.
      inner: Spec of the optimizer.
      damping: Weight of the plain gradient.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: If the damping is not positive.
    """
    around = optax.with_extra_args_support(inner)

    def update(
        updates,
        state,
        params=None,
        *,
        tokens: jax.Array | None = None,
        grams: Mapping[str, jax.Array] | None = None,
        **extra,
    ):
        known = resolve(layouts, updates)
        if tokens is not None:
            updates = map_leaves(
                lambda layout, g: _embedding(layout, g, tokens, damping), known, updates
            )

        def by_gram(name, gradient):
            if name not in (grams or {}):
                return gradient
            flat = gradient.reshape(-1, gradient.shape[-1])
            solved = preconditioned(flat, (grams or {})[name], damping)
            return solved.reshape(gradient.shape)

        return around.update(
            map_named(by_gram, updates), state, params, tokens=tokens, **extra
        )

    return optax.GradientTransformationExtraArgs(around.init, update)


build = tract
