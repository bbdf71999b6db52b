"""The gated delta rule in chunks: products of matrices instead of steps in time."""

import functools
import math

import jax
import jax.numpy as jnp

from reslab.core.platform import platform
from reslab.core.precision import statistics_dtype
from reslab.core.varying import varying_like

# Tokens that are taken together; the memory is kept for the backward pass once for
# each of them. A TPU's matrix unit is as wide as the second: with it, and the products
# of three passes below, pod_1b_gated_delta needs 11.9 GiB instead of 13.1 (compiled).
CHUNK = 64
CHUNK_OF_TPU = 128
# Rows of a system that are solved one after another.
LEAF = 16


def _product(
    equation: str,
    *operands: jax.Array,
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
) -> jax.Array:
    # Rounding errors of products would accumulate from chunk to chunk.
    return jnp.einsum(equation, *operands, precision=precision)


@jax.custom_vjp
def inverse_of_unit_lower(matrices: jax.Array) -> jax.Array:
    """(I + A)^-1 for strictly lower matrices A (..., n, n), n a power of two.

    Row by row in blocks of 16 along the diagonal, which are then joined in pairs, by
    products. A sum of powers of A would need products alone, but they grow to 1e15
    where keys are alike, although the inverse does not.
    """
    size = matrices.shape[-1]
    leaf = min(LEAF, size)
    # Leading axes are not merged: they may be sharded.
    row, column = (
        jax.lax.broadcasted_iota(jnp.int32, matrices.shape, matrices.ndim - axis)
        for axis in (2, 1)
    )
    blocks = jnp.where(row // leaf == column // leaf, matrices, 0)
    inverse = varying_like((row == column).astype(matrices.dtype), matrices)
    in_blocks = (*matrices.shape[:-2], size // leaf, leaf, size)

    def solve(first, inverse):
        # That row of all blocks at once; later rows are multiplied by zeros.
        rows = jax.lax.dynamic_index_in_dim(
            blocks.reshape(in_blocks), first, axis=-2, keepdims=False
        )
        found = _product("...ij,...jk->...ik", rows, inverse)
        inverse = inverse.reshape(in_blocks).at[..., first, :].add(-found)
        return inverse.reshape(matrices.shape)

    inverse = jax.lax.fori_loop(1, leaf, solve, inverse)
    width = leaf
    while width < size:
        is_pair = row // (2 * width) == column // (2 * width)
        is_between = is_pair & (row // width > column // width)
        joint = jnp.where(is_between, matrices, 0)
        right = _product("...ij,...jk->...ik", joint, inverse)
        inverse = inverse - _product("...ij,...jk->...ik", inverse, right)
        width *= 2
    return inverse


def _inverse_forward(matrices):
    inverse = inverse_of_unit_lower(matrices)
    return inverse, inverse


def _inverse_backward(inverse, cotangent):
    left = _product("...ji,...jk->...ik", inverse, cotangent)
    return (-_product("...ij,...kj->...ik", left, inverse),)


inverse_of_unit_lower.defvjp(_inverse_forward, _inverse_backward)


def _running_sums(log_decay: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums of log decays (..., n) over the last axis so far, in two parts.

    Differences of either part lose nothing, whatever the decays before: the first part
    is of whole multiples of a number so large that all their sums are exact, the second
    of remainders too small to be rounded noticeably. Decays below the logarithm of the
    smallest number are 0 all the same and are taken as that.
    """
    about = jnp.finfo(log_decay.dtype)
    least = 2.0 ** math.ceil(math.log2(-math.log(float(about.smallest_subnormal))))
    unit = least * log_decay.shape[-1] * 2.0 ** -(about.nmant + 1)
    log_decay = jnp.maximum(log_decay, -least)
    coarse = jnp.round(log_decay / unit) * unit  # Its gradient is 0.
    return jnp.cumsum(coarse, axis=-1), jnp.cumsum(log_decay - coarse, axis=-1)


def chunked(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array,
    state: jax.Array,
    resets: jax.Array | None,
    size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Applies the rule to chunks of tokens; see `api.gated_delta_rule`.

    With G the sum of log decays since the beginning of a chunk and S its first memory,
    what the tokens write follows from one triangular system for the whole chunk:

        A[i, j] = beta[i] exp(G[i] - G[j]) k[i] . k[j]                  for j < i
        (I + A) U = diag(beta) (V - diag(exp G) K S)
        O = diag(exp G) Q S + tril(exp(G[i] - G[j]) q[i] . k[j]) U
        S <- exp(G[last]) S + (diag(exp(G[last] - G)) K)^T U

    No exponent is positive, and a decay of any strength, minus infinity as well, leaves
    those of other tokens exact to rounding. A reset lets no token see what is before
    it. For inputs in bfloat16 a TPU's products, but for the inverse, are those of three
    passes: good to 16 bits where their inputs have 8 (tested by their emulation).

    Reference: Yang et al., 2024, https://arxiv.org/abs/2412.06464, Section 3.3.

    All arguments are those of `api.gated_delta_rule` but for `size`, the number of
    tokens of a chunk, a power of two.
    """
    size = size or (CHUNK_OF_TPU if platform() == "tpu" else CHUNK)
    given, wide = query.dtype, statistics_dtype(query.dtype)
    is_exact = given.itemsize >= 4
    product = functools.partial(
        _product,
        precision=jax.lax.Precision.HIGHEST if is_exact else jax.lax.Precision.HIGH,
    )
    length = query.shape[1]
    padding = -length % size

    def cut(x):
        """(batch, length, heads, ...) to (chunks, batch, heads, size, ...)."""
        x = jnp.pad(x.astype(wide), [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)])
        x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
        return jnp.moveaxis(x, (1, 3), (0, 2))

    query, key, value = cut(query), cut(key), cut(value)
    # Padding at the end neither writes nor decays.
    beta, (coarse, fine) = cut(beta), _running_sums(cut(log_decay))
    query = query * query.shape[-1] ** -0.5
    row, column = jnp.arange(size)[:, None], jnp.arange(size)[None]
    is_seen = (row > column)[None, None, None]
    from_start = jnp.exp(coarse + fine)
    # A token itself has not decayed: a constant, so that no rounding error of it is in
    # the gradient.
    to_end = (coarse[..., -1:] - coarse) + (fine[..., -1:] - fine)
    to_end = jnp.exp(jnp.where(jnp.arange(size) < size - 1, to_end, 0))
    if resets is not None:
        # Number of documents begun in the chunk so far: equal for tokens of one
        # document.
        begun = jnp.cumsum(cut(resets[:, :, None].astype(wide)), axis=-1)
        is_seen = is_seen & (begun[..., :, None] == begun[..., None, :])
        from_start = jnp.where(begun == 0, from_start, 0)
        to_end = jnp.where(begun == begun[..., -1:], to_end, 0)
    apart = (coarse[..., :, None] - coarse[..., None, :]) + (
        fine[..., :, None] - fine[..., None, :]
    )
    own = jnp.where(row == column, 0.0, -jnp.inf).astype(wide)
    decay = jnp.exp(jnp.where(is_seen, apart, own))
    seen = product("nbhik,nbhjk->nbhij", query, key) * decay
    system = product("nbhik,nbhjk->nbhij", key, key) * decay * beta[..., None]
    system = jnp.where((row > column)[None, None, None], system, 0)
    inverse = inverse_of_unit_lower(system)
    writes = product("nbhij,nbhjv->nbhiv", inverse, beta[..., None] * value)
    starts = (beta * from_start)[..., None] * key
    erased = product("nbhij,nbhjk->nbhik", inverse, starts)
    read, kept = from_start[..., None] * query, to_end[..., None] * key

    @jax.checkpoint
    def step(memory, chunk):
        writes, erased, read, seen, kept, keep = chunk
        change = writes - product("bhik,bhkv->bhiv", erased, memory)
        output = product("bhik,bhkv->bhiv", read, memory)
        output = output + product("bhij,bhjv->bhiv", seen, change)
        memory = keep[..., None, None] * memory
        return memory + product("bhik,bhiv->bhkv", kept, change), output

    chunks = writes, erased, read, seen, kept, from_start[..., -1]
    start = varying_like(state.astype(wide), chunks)
    state, output = jax.lax.scan(step, start, chunks)
    output = jnp.moveaxis(output, (0, 2), (1, 3))
    output = output.reshape(output.shape[0], -1, *output.shape[3:])[:, :length]
    return output.astype(given), state
