"""Linear attention with a decay per head in chunks: products of matrices."""

import functools

import jax
import jax.numpy as jnp

from reslab.core.platform import platform
from reslab.core.precision import statistics_dtype
from reslab.core.varying import varying_like
from reslab.ops.decays import running_sums

# Tokens that are taken together. A TPU's matrix unit is as wide as the second.
CHUNK = 64
CHUNK_OF_TPU = 128


def chunked(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_decay: jax.Array,
    state: jax.Array,
    resets: jax.Array | None,
    size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Applies the recurrence to chunks of tokens; see `api.ssd`.

    With G the sum of log decays since the beginning of a chunk and S its first memory:

        Y = tril(exp(G[i] - G[j]) q[i] . k[j]) V + diag(exp G) Q S
        S <- exp(G[last]) S + (diag(exp(G[last] - G)) K)^T V

    No exponent is positive. Chunks wait for each other in the last line alone, which
    has no product of matrices but the one that all chunks make at once.

    Reference: Dao & Gu, 2024, https://arxiv.org/abs/2405.21060, Section 6.

    All arguments are those of `api.ssd` but for `size`, the number of tokens of a
    chunk.
    """
    size = size or (CHUNK_OF_TPU if platform() == "tpu" else CHUNK)
    given, wide = query.dtype, statistics_dtype(query.dtype)
    product = functools.partial(
        jnp.einsum,
        precision=jax.lax.Precision.HIGHEST
        if given.itemsize >= 4
        else jax.lax.Precision.HIGH,
    )
    length, groups = query.shape[1:3]
    padding = -length % size

    def cut(x):
        """(batch, length, ...) to (chunks, batch, size, ...)."""
        x = jnp.pad(x.astype(wide), [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    def grouped(x, axis):
        """(..., heads, ...) to (..., groups, heads of a group, ...)."""
        return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])

    # n chunks, b rows, g groups, r heads of a group, i and j tokens.
    query, key = (jnp.moveaxis(cut(x), 3, 2) for x in (query, key))  # nbgik
    value = jnp.moveaxis(grouped(cut(value), 3), 2, 4)  # nbgriv
    # Padding at the end neither writes nor decays.
    log_decay = jnp.moveaxis(grouped(cut(log_decay), 3), 2, 4)  # nbgri
    coarse, fine = running_sums(log_decay)
    row, column = jnp.arange(size)[:, None], jnp.arange(size)[None]
    is_seen = (row > column)[None, None, None, None]
    from_start = jnp.exp(coarse + fine)
    # A token itself has not decayed: a constant, so that no rounding error of it is in
    # the gradient.
    to_end = (coarse[..., -1:] - coarse) + (fine[..., -1:] - fine)
    to_end = jnp.exp(jnp.where(jnp.arange(size) < size - 1, to_end, 0))
    if resets is not None:
        begun = jnp.cumsum(cut(resets[:, :, None].astype(wide)), axis=2)
        begun = jnp.moveaxis(begun, 2, 3)[:, :, None]  # nb111i
        is_seen = is_seen & (begun[..., :, None] == begun[..., None, :])
        from_start = jnp.where(begun == 0, from_start, 0)
        to_end = jnp.where(begun == begun[..., -1:], to_end, 0)
    apart = (coarse[..., :, None] - coarse[..., None, :]) + (
        fine[..., :, None] - fine[..., None, :]
    )
    own = jnp.where(row == column, 0.0, -jnp.inf).astype(wide)
    decay = jnp.exp(jnp.where(is_seen, apart, own))
    seen = product("nbgik,nbgjk->nbgij", query, key)[:, :, :, None] * decay
    written = product("nbgjk,nbgrjv->nbgrkv", key, to_end[..., None] * value)
    keep = from_start[..., -1][..., None, None]

    def step(memory, chunk):
        written, keep = chunk
        return keep * memory + written, memory

    start = varying_like(grouped(state.astype(wide), 1), (written, keep))
    state, memories = jax.lax.scan(step, start, (written, keep))
    output = product("nbgrij,nbgrjv->nbgriv", seen, value)
    read = product("nbgik,nbgrkv->nbgriv", query, memories)
    output = output + from_start[..., None] * read
    output = jnp.moveaxis(output, (0, 4), (1, 2))  # bnigrv
    output = output.reshape(
        output.shape[0], -1, groups * output.shape[4], value.shape[-1]
    )
    state = state.reshape(state.shape[0], -1, *state.shape[3:])
    return output[:, :length].astype(given), state
