"""The delta rule in chunks: products of matrices instead of steps in time."""

import functools

import jax
import jax.numpy as jnp

from reslab.core.platform import platform
from reslab.core.precision import statistics_dtype
from reslab.core.varying import varying_like
from reslab.ops.delta_rule.decay import decay_of
from reslab.ops.triangular_inverse.api import triangular_inverse

# Tokens that are taken together; the memory is kept for the backward pass once for
# each of them. A TPU's matrix unit is as wide as the second: with it, and the products
# of three passes below, pod_1b_gated_delta needs 11.9 GiB instead of 13.1 (compiled).
CHUNK = 64
CHUNK_OF_TPU = 128
# Decays of channels cost one more pass over the keys for each doubling of a chunk. On
# two cores, 4,096 tokens of four heads of 64 take 0.40 s with it, and 0.48 s with 64.
CHUNK_OF_CHANNELS = 32


def _product(
    equation: str,
    *operands: jax.Array,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> jax.Array:
    # Rounding errors of products would accumulate from chunk to chunk.
    return jnp.einsum(equation, *operands, precision=precision)


def chunked(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None,
    state: jax.Array,
    resets: jax.Array | None,
    size: int = 0,
    inverse: str = "block",
) -> tuple[jax.Array, jax.Array]:
    """Applies the rule to chunks of tokens; see `api.delta_rule`.

    With G the sum of log decays since the beginning of a chunk and S its first memory,
    what the tokens write follows from one triangular system for the whole chunk (for
    decays of channels, exp(G) stands inside the products of keys):

        A[i, j] = beta[i] exp(G[i] - G[j]) k[i] . k[j]                  for j < i
        (I + A) U = diag(beta) (V - diag(exp G) K S)
        O = diag(exp G) Q S + tril(exp(G[i] - G[j]) q[i] . k[j]) U
        S <- exp(G[last]) S + (diag(exp(G[last] - G)) K)^T U

    No exponent is positive, and a decay of any strength, minus infinity as well, leaves
    those of other tokens exact to rounding. A reset lets no token see what is before
    it. For inputs in bfloat16 a TPU's products, but for the inverse, are those of three
    passes: good to 16 bits where their inputs have 8 (tested by their emulation).

    Reference: Yang et al., 2024, https://arxiv.org/abs/2412.06464, Section 3.3; Kimi
    Team, 2025, https://arxiv.org/abs/2510.26692, Section 3.1.

    All arguments are those of `api.delta_rule` but for `size`, the number of tokens of
    a chunk, a power of two; 0 chooses.
    """
    if not size:
        is_of_channels = log_decay is not None and log_decay.ndim > beta.ndim
        size = CHUNK_OF_CHANNELS if is_of_channels else CHUNK
        size = CHUNK_OF_TPU if platform() == "tpu" else size
    given, wide = query.dtype, statistics_dtype(query.dtype)
    is_exact = given.itemsize >= 4
    product = functools.partial(
        _product,
        precision=jax.lax.Precision.HIGHEST if is_exact else jax.lax.Precision.HIGH,
    )
    length = query.shape[1]

    def cut(x):
        """(batch, length, heads, ...) to (chunks, batch, heads, size, ...)."""
        more = -length % size
        x = jnp.pad(x.astype(wide), [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)])
        x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
        return jnp.moveaxis(x, (1, 3), (0, 2))

    query, key, value = cut(query), cut(key), cut(value)
    # Padding at the end neither writes nor decays.
    beta = cut(beta)
    decay = decay_of(None if log_decay is None else cut(log_decay), beta)
    from_start, to_end = decay.from_start, decay.to_end
    query = query * query.shape[-1] ** -0.5
    row, column = jnp.arange(size)[:, None], jnp.arange(size)[None]
    is_seen = (row >= column)[None, None, None]
    if resets is not None:
        # Number of documents begun in the chunk so far: equal for tokens of one
        # document.
        begun = jnp.cumsum(cut(resets[:, :, None].astype(wide)), axis=-1)
        is_seen = is_seen & (begun[..., :, None] == begun[..., None, :])
        begun = begun[..., None]
        from_start = jnp.where(begun == 0, from_start, 0)
        to_end = jnp.where(begun == begun[..., -1:, :], to_end, 0)
    seen, system = decay.pairs((query, key), key, product)
    seen = jnp.where(is_seen, seen, 0)
    is_before = is_seen & (row > column)[None, None, None]
    system = jnp.where(is_before, beta[..., None] * system, 0)
    inverted = triangular_inverse(system, method=inverse)
    writes = product("nbhij,nbhjv->nbhiv", inverted, beta[..., None] * value)
    starts = beta[..., None] * from_start * key
    erased = product("nbhij,nbhjk->nbhik", inverted, starts)

    @jax.checkpoint
    def step(memory, chunk):
        writes, erased, read, seen, kept, keep = chunk
        change = writes - product("bhik,bhkv->bhiv", erased, memory)
        output = product("bhik,bhkv->bhiv", read, memory)
        output = output + product("bhij,bhjv->bhiv", seen, change)
        memory = keep[..., None] * memory
        return memory + product("bhik,bhiv->bhkv", kept, change), output

    keep = from_start[..., -1, :]
    chunks = writes, erased, from_start * query, seen, to_end * key, keep
    start = varying_like(state.astype(wide), chunks)
    state, output = jax.lax.scan(step, start, chunks)
    output = jnp.moveaxis(output, (0, 2), (1, 3))
    output = output.reshape(output.shape[0], -1, *output.shape[3:])[:, :length]
    return output, state
