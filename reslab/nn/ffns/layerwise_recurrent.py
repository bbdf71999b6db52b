"""Experts whose router remembers what it said in the layers before."""

from collections.abc import Collection
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.types import Shared
from reslab.nn.ffns._kernels import Router
from reslab.nn.ffns.experts import Experts

CELL, STATE = "router_cell", "router_state"


@bounded
class LayerwiseRecurrentExperts(Experts):
    """Experts chosen by a recurrent router that steps from layer to layer.

        u   = W_1 x,    h = GRU(u, h_(l-1)),    logits = W_2 h

    for each token apart, so generation keeps no state of it. All layers share one GRU,
    which the first of them owns and leaves in the depth memory together with h, which
    is 0 before it.

        r = sigmoid(A_r u + a_r + B_r h' + b_r)
        z = sigmoid(A_z u + a_z + B_z h' + b_z)
        n = tanh(A_n u + a_n + r (B_n h' + b_n)),   h = (1 - z) n + z h'

    Reference: Qiu et al., 2024, https://arxiv.org/abs/2408.06793, Eq. 4 to 6.

    Tested against the authors' code, but for an argument in it that made it fail.

    Attributes:
      router_width: Width of the GRU.
      (and those of `Experts`)

    Raises:
      ReslabError: If the first layer that is applied is not the one with the GRU, or
        as for `Experts`.
    """

    router_width: Count = 128

    writes_shared: ClassVar[Collection[str]] = (CELL, STATE)
    renews_shared: ClassVar[Collection[str]] = (STATE,)

    def mixing_flops(self, length: int, features: int) -> int:
        """Adds those of the GRU, whose kernels one layer has for all."""
        return super().mixing_flops(length, features) + 12 * self.router_width**2

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        shared: Shared | None = None,
    ) -> jax.Array | tuple[jax.Array, Shared]:
        """Maps (batch, length, embed) to the same shape.

        Args:
          x: The input.
          mask: Which tokens are in a document (batch, length); None is all.
          shared: Depth memory, with GRU and state if a layer has left them; None
            outside of a model.

        Returns:
          The answers, and the entries for the depth memory if there is one.
        """
        self._check()
        is_alone, shared = shared is None, shared or {}
        wide = self.router_input(x)
        width = self.router_width
        cell = shared[CELL] if CELL in shared else self._cell()
        before = shared.get(STATE)
        if before is None:
            before = jnp.zeros((*x.shape[:-1], width), wide.dtype)
        u = Router(width, self.init_std, self.param_dtype, name="router_in")(wide)
        state = _step(jax.tree.map(lambda a: a.astype(wide.dtype), cell), u, before)
        route = Router(
            self.experts, self.init_std, self.param_dtype, None, name="router_out"
        )
        y = self.ask(x, route(state), mask, self.kernels(x))
        return y if is_alone else (y, {CELL: cell, STATE: state})

    def _cell(self) -> dict[str, jax.Array]:
        """The parameters of the GRU."""
        if not self.is_initializing() and not self.has_variable("params", "cell_input"):
            raise ReslabError(
                "ffns 'layerwise_recurrent': the router's GRU",
                expected="layers that begin with the one that owns it",
                got="a path without it",
            )
        width = self.router_width
        bound = width**-0.5
        made = {}
        for name, shape in (
            ("input", (3, width, width)),
            ("state", (3, width, width)),
            ("input_bias", (3, width)),
            ("state_bias", (3, width)),
        ):
            init = nn.initializers.uniform(2 * bound)
            made[name] = parameter(
                self,
                f"cell_{name}",
                lambda key, shape, dtype, init=init: init(key, shape, dtype) - bound,
                shape,
                (None,) * len(shape),
                self.param_dtype,
            )
        return made


def _step(cell: dict[str, jax.Array], u: jax.Array, before: jax.Array) -> jax.Array:
    """One step of the GRU: its reset gate, update gate and candidate lie on axis 0."""

    def gates(x: jax.Array, name: str) -> jax.Array:
        bias = cell[f"{name}_bias"][:, None, None]
        return jnp.einsum("blp,gpq->gblq", x, cell[name]) + bias

    read, kept = gates(u, "input"), gates(before, "state")
    reset, update = nn.sigmoid(read[0] + kept[0]), nn.sigmoid(read[1] + kept[1])
    new = jnp.tanh(read[2] + reset * kept[2])
    return (1 - update) * new + update * before


build = LayerwiseRecurrentExperts
