"""A residual addition and a norm on a GPU: one kernel each way, through Triton.

JAX gives up Triton in Pallas; this file ends with it. It was compared with the
reference emulated, and lowered for CUDA; it has not run on a GPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from reslab.ops import tiles
from reslab.ops.add_norm.reference import normalized
from reslab.ops.token_kernel import Arrays

# Numbers of a tile: what a program holds in registers.
TILE_ELEMENTS = 2**12
WIDEST = 2**14
# Programs of the backward pass; each sums gradients of parameters for itself, since
# programs of a GPU run in any order, at once.
PROGRAMS = 256


def obstacle(norm: str, x: jax.Array, rows: int) -> str | None:
    """Says what the kernel cannot do about these arguments, or None."""
    del rows
    found = tiles.common_obstacle(x.dtype, x.shape[0], on="gpu")
    return found or misfit(norm, x.shape[-1])


def misfit(norm: str, width: int) -> str | None:
    """Lists what Triton cannot express: widths other than powers of two, erf."""
    if norm == "derf":
        return "norm 'derf' (Triton in Pallas has no erf)"
    near = min(max(tiles.LANES, 1 << (width - 1).bit_length()), WIDEST)
    return None if width == near else f"width {width}, the nearest is {near}"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def add_norm(
    norm: str,
    x: jax.Array,
    update: jax.Array,
    rows: Arrays,
    epsilon: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Runs the kernel on each device's own part of the batch; see `api.add_norm`."""
    return _forward(norm, x, update, rows, epsilon, interpret)[0]


def _launch(body: Any, programs: int, results: Any, interpret: bool) -> Any:
    return pl.pallas_call(
        body,
        grid=(programs,),
        out_shape=results,
        compiler_params=triton.CompilerParams(num_warps=8),
        interpret=interpret,
        name=body.__name__,
    )


def _load(ref: Any, at: Any, exists: jax.Array) -> jax.Array:
    """A tile in float32; zeros behind the last token."""
    return triton.load(ref.at[at, :], mask=exists, other=0.0).astype(jnp.float32)


def _place(tile: Any, size: int, tokens: int) -> tuple[Any, jax.Array]:
    """The tokens of a tile, and which of them exist (tokens, 1)."""
    begin = tile * size
    return pl.ds(begin, size), (begin + jnp.arange(size) < tokens)[:, None]


def _forward(norm, x, update, rows, epsilon, interpret):
    size = max(1, TILE_ELEMENTS // x.shape[-1])

    def local(x, update, *rows, axes):
        del axes
        flat = x.reshape(-1, x.shape[-1])
        tokens = flat.shape[0]

        def add_norm_forward(x_ref, update_ref, *refs):
            *row_refs, total_ref, output_ref = refs
            at, exists = _place(pl.program_id(0), size, tokens)
            total = _load(x_ref, at, exists) + _load(update_ref, at, exists)
            total = total.astype(x.dtype)
            given = tuple(ref[...] for ref in row_refs)
            y = normalized(norm, total.astype(jnp.float32), given, epsilon)
            triton.store(total_ref.at[at, :], total, mask=exists)
            triton.store(output_ref.at[at, :], y.astype(x.dtype), mask=exists)

        like = jax.ShapeDtypeStruct(flat.shape, x.dtype)
        run = _launch(add_norm_forward, pl.cdiv(tokens, size), (like, like), interpret)
        given = (row.reshape(1, -1) for row in rows)
        outputs = run(flat, update.reshape(flat.shape), *given)
        return tuple(output.reshape(x.shape) for output in outputs)

    run = tiles.over_batch(local, (0, 0, *(None for _ in rows)), (0, 0))
    outputs = tiles.differentiable_once(run, f"add_norm({norm!r})")(x, update, *rows)
    return outputs, (outputs[0], rows)


def _backward(norm, epsilon, interpret, kept, cotangents):
    total, rows = kept
    size = max(1, TILE_ELEMENTS // total.shape[-1])

    def local(total, by_total, by_output, *rows, axes):
        flat = [a.reshape(-1, a.shape[-1]) for a in (total, by_total, by_output)]
        tokens, width = flat[0].shape
        programs = min(PROGRAMS, pl.cdiv(tokens, size))
        turns = pl.cdiv(tokens, size * programs)

        def add_norm_backward(total_ref, by_total_ref, by_output_ref, *others):
            row_refs, (by_sum_ref, *by_refs) = others[: len(rows)], others[len(rows) :]
            given = tuple(ref[...] for ref in row_refs)
            program = pl.program_id(0)

            def turn(index, sums):
                at, exists = _place(index * programs + program, size, tokens)
                refs = total_ref, by_total_ref, by_output_ref
                h, by_h, by_y = (_load(ref, at, exists) for ref in refs)
                _, pull = jax.vjp(
                    lambda h, r: normalized(norm, h, r, epsilon), h, given
                )
                more, by_rows = pull(by_y)
                by_sum = (by_h + more).astype(total.dtype)
                triton.store(by_sum_ref.at[at, :], by_sum, mask=exists)
                return tuple(a + b for a, b in zip(sums, by_rows, strict=True))

            zeros = tuple(jnp.zeros((1, width), jnp.float32) for _ in rows)
            sums = jax.lax.fori_loop(0, turns, turn, zeros)
            for ref, value in zip(by_refs, sums, strict=True):
                ref[program, :] = value[0]

        sums = (jax.ShapeDtypeStruct((programs, width), jnp.float32),) * len(rows)
        like = jax.ShapeDtypeStruct(flat[0].shape, total.dtype)
        run = _launch(add_norm_backward, programs, (like, *sums), interpret)
        by_sum, *by_rows = run(*flat, *(row.reshape(1, -1) for row in rows))
        by_rows = (tiles.summed(by_row.sum(0), axes) for by_row in by_rows)
        return by_sum.reshape(total.shape), *by_rows

    inputs, outputs = (0, 0, 0, *(None for _ in rows)), (0, *(-1 for _ in rows))
    run = tiles.over_batch(local, inputs, outputs)
    once = tiles.differentiable_once(run, f"add_norm({norm!r})")
    by_sum, *by_rows = once(total, *cotangents, *rows)
    return by_sum, by_sum, tuple(by_rows)


add_norm.defvjp(_forward, _backward)
