"""Cross-entropy of a linear head, token by token."""

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.varying import varying_like
from reslab.ops.cross_entropy.chunked import chunked
from reslab.ops.cross_entropy.reference import whole

LARGEST_CHUNK = 8192


def token_losses(
    features: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    *,
    vocabulary_size: int | None = None,
    chunks: int = 0,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Computes the cross-entropy of each token.

        log_normalizer[t] = log sum_v exp(features[t] . kernel[:, v])
        nll[t] = log_normalizer[t] - features[t] . kernel[:, targets[t]]

    With more than one chunk, the array of all logits never exists: memory is
    one chunk, and the backward pass costs one more matrix product.
    Products are taken in the dtype of `features` and accumulated, like all
    that follows, in float32, or in float64 for float64 features.

    Args:
      features: Inputs of the head (..., embed).
      kernel: The head (embed, padded vocabulary), in the dtype of `features`.
      targets: Token ids (...); a token whose id is outside the vocabulary gets
        its log-normalizer as loss, so give it no weight.
      vocabulary_size: Number of ids; later columns of the kernel are padding
        and get no probability. All columns if None.
      chunks: Parts in which the vocabulary is taken; 0 is 1 up to a padded
        vocabulary of 8192, and from there the power of two that keeps a part
        within that.
      softcap: Bound of the logits, which are then softcap * tanh(products / softcap);
        0 disables it.

    Returns:
      Negative log-likelihood in nats and log-normalizer, shaped like `targets`.

    Raises:
      ReslabError: If shapes or dtypes do not fit.

    >>> features, kernel = jnp.ones((1, 2)), jnp.zeros((2, 8))
    >>> nll, _ = token_losses(features, kernel, jnp.array([3]), vocabulary_size=4)
    >>> round(float(jnp.exp(nll[0])), 3)
    4.0
    """
    if features.shape[:-1] != targets.shape:
        raise ReslabError(
            "token_losses: targets",
            expected=f"shape {features.shape[:-1]}",
            got=str(targets.shape),
        )
    if kernel.ndim != 2 or kernel.shape[0] != features.shape[-1]:
        raise ReslabError(
            "token_losses: kernel",
            expected=f"({features.shape[-1]}, vocabulary)",
            got=str(kernel.shape),
        )
    if kernel.dtype != features.dtype:
        raise ReslabError(
            "token_losses: kernel", expected=str(features.dtype), got=str(kernel.dtype)
        )
    columns = kernel.shape[1]
    vocabulary_size = columns if vocabulary_size is None else vocabulary_size
    if not 0 < vocabulary_size <= columns:
        raise ReslabError(
            "token_losses: vocabulary_size",
            expected=f"1 to {columns}, the columns of the kernel",
            got=str(vocabulary_size),
        )
    if not 0 <= chunks <= columns:
        raise ReslabError(
            "token_losses: chunks", expected=f"0 to {columns}", got=str(chunks)
        )
    # No column has the id -1, so no column matches a target in the padding.
    targets = jnp.where(targets < vocabulary_size, targets.astype(jnp.int32), -1)
    chunks = chunks or automatic_chunks(columns)
    if chunks == 1:
        return whole(features, kernel, targets, vocabulary_size, softcap)
    # The gradient of a kernel shared by all devices is summed in the transpose of this.
    features, kernel = varying_like((features, kernel), features, kernel, targets)
    return chunked(features, kernel, targets, vocabulary_size, chunks, softcap)


def automatic_chunks(columns: int) -> int:
    """The power of two that keeps each chunk within 8192 columns.

    Vocabularies are padded to multiples of powers of two, so chunks of this
    number are equal, and divide over the devices of a mesh.

    >>> [automatic_chunks(columns) for columns in (257, 8192, 50304, 128256)]
    [1, 1, 8, 16]
    """
    return 1 << (-(-columns // LARGEST_CHUNK) - 1).bit_length()
