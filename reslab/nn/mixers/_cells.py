"""Base of mixers that step a cell along the tokens, layer upon layer."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry, surroundings
from reslab.core.bounds import Count, Repeats, Whole, bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.varying import varying_like
from reslab.nn.base.norm import make_norm
from reslab.nn.mixers._recurrent import RecurrentMixer, Tokens

INNER_NORM = "layer(epsilon=1e-05)"


def normed(parent: Any, spec: registry.Spec, name: str, x: jax.Array) -> jax.Array:
    """Normalizes the last axis of `x`, with parameters called `name` in `parent`."""
    axis = surroundings.Norms(logical_axis="mlp")
    kept = {"param_dtype": parent.param_dtype, "parent": parent, "name": name}
    return make_norm(spec, **axis, **kept)(x)


class Cell(nn.Module):
    """Base of cells: `cell(state, inputs) -> (state, output)`, for one token.

    Attributes:
      hidden: Width of the output.
      norm: Spec of the norms inside.
      dtype: Compute dtype of the products.
      param_dtype: Dtype in which parameters are stored.
    """

    hidden: Count = 1
    norm: registry.Spec = INNER_NORM
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def normed(self, name: str, x: jax.Array) -> jax.Array:
        """Normalizes the last axis; see `normed`."""
        return normed(self, self.norm, name, x)

    def recur(self, name: str, h: jax.Array, gates: int) -> jax.Array:
        """Multiplies by a kernel called `name`, orthogonal for each gate at first."""

        def init(key, shape, dtype):
            square = nn.initializers.orthogonal()
            keys = jax.random.split(key, gates)
            return jnp.concatenate([square(k, shape[:1] * 2, dtype) for k in keys], 1)

        shape = self.hidden, gates * self.hidden
        kernel = parameter(self, name, init, shape, (None, "mlp"), self.param_dtype)
        product = h.astype(self.dtype) @ kernel.astype(self.dtype)
        return product.astype(h.dtype)


@bounded
class CellMixer(RecurrentMixer):
    """Base of mixers that step a cell along the tokens, layer upon layer.

        h = cell_n(... cell_1(x)),   y = h . W_o

    Attributes:
      hidden: Width of the cells; 0 is the width of the input.
      layers: Number of cells, one upon the other.
      cell_norm: Norm inside the cells; "none" leaves it out.
      (and those of `RecurrentMixer`)
    """

    hidden: Whole = 0
    layers: Repeats = 1
    cell_norm: registry.Spec = INNER_NORM

    # The class of its cell, and the names of what the cell keeps.
    cell: ClassVar[Any] = Cell
    kept: ClassVar[tuple[str, ...]] = ()

    def cell_inputs(self, prefix: str, x: jax.Array, hidden: int) -> Any:
        """Projects what a cell reads of all tokens at once.

        Args:
          prefix: Begins the names of the projections.
          x: Input of the layer (batch, length, ...).
          hidden: Width of the cell.

        Returns:
          Arrays (batch, length, ...).
        """
        raise NotImplementedError

    def cell_input(
        self, name: str, x: jax.Array, size: int, *, is_twice: bool = False
    ) -> jax.Array:
        """Projects `x` to LN(W x + b), to which b is added again if `is_twice`."""
        wide = statistics_dtype(self.dtype)
        h = self.project(name, x, size, ("embed", "mlp")).astype(wide)
        bias = self.weight(f"{name}_bias", nn.initializers.zeros, (size,), ("mlp",))
        h = normed(self, self.cell_norm, f"{name}_norm", h + bias[None, None])
        return h + bias[None, None] if is_twice else h

    def step_flops(self, features: int) -> int:
        """No product beyond the kernels'."""
        del features
        return 0

    def empty_state(self, batch: int, features: int) -> dict[str, jax.Array]:
        """Zeros, for every layer."""
        shape = batch, self.hidden or features
        zeros = jnp.zeros(shape, statistics_dtype(self.dtype))
        names = [f"{k}_{layer}" for layer in range(self.layers) for k in self.kept]
        return dict.fromkeys(names, zeros)

    def mix(
        self, x: jax.Array, tokens: Tokens, state: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Mixes `x`; see `RecurrentMixer.mix`."""
        features, (batch, length) = x.shape[-1], x.shape[:2]
        hidden = self.hidden or features
        state = self.empty_state(batch, features) if state is None else state
        shape, new = (batch, length), {}
        resets, is_real = tokens.resets, tokens.is_real
        marks = (
            jnp.zeros(shape, bool) if resets is None else resets,
            jnp.ones(shape, bool) if is_real is None else is_real,
        )

        def step(cell, carry, token):
            inputs, (is_reset, is_real) = token
            begun = jax.tree.map(lambda s: jnp.where(is_reset[:, None], 0, s), carry)
            after, h = cell(begun, inputs)
            kept = jax.tree.map(
                lambda new, old: jnp.where(is_real[:, None], new, old), after, carry
            )
            return kept, h

        steps = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        for layer in range(self.layers):
            cell = self.cell(
                hidden,
                self.cell_norm,
                self.dtype,
                self.param_dtype,
                name=f"cell_{layer}",
            )
            inputs = self.cell_inputs(f"layer_{layer}", x, hidden)
            start = {name: state[f"{name}_{layer}"] for name in self.kept}
            start = varying_like(start, inputs, marks)
            end, h = steps(cell, start, (inputs, marks))
            new |= {f"{name}_{layer}": value for name, value in end.items()}
            x = h.astype(self.dtype)
        scale = self.output_scale
        return self.project("output", x, features, ("mlp", "embed"), scale=scale), new
