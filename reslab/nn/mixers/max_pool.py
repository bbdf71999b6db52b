"""A parameter-free mixer of image patches: the maximum over neighbours."""

import math
from typing import ClassVar

import jax

from reslab.core.bounds import Count, Positive, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.nn.mixers._grid import GridMixer


@bounded
class MaxPool(GridMixer):
    """Takes the largest value of every channel among neighbouring patches.

        y = gelu(max over a window of gelu(x . W_up)) . W_down

    The window itself has no parameters; both projections, of `expansion` times the
    width, have what attention's projections would. At the edge it holds the patches
    that are there. Maximum and GELU (exact, in float32 at least) keep `dtype`.

    Reference: Han et al., 2022, https://arxiv.org/abs/2202.02777, Section 4.3 (vision
    transformers). Read in the authors' code, which was not run: tested against the
    equation.

    Attributes:
      window: Rows and columns of the window, odd.
      expansion: Channels inside over the width.
      (and those of `GridMixer`)

    Raises:
      ReslabError: If the window is even.
    """

    window: Count = 3
    expansion: Positive = 3.0

    # A token sees its neighbours alone.
    is_local: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.window % 2 == 0:
            raise ReslabError(
                "mixers 'max_pool': window",
                expected="an odd number",
                got=str(self.window),
            )

    def mixing_flops(self, length: int, features: int) -> int:
        """No product beyond the kernels'."""
        del length, features
        return 0

    def mix(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Mixes `x`; see `GridMixer.mix`."""
        features = x.shape[-1]
        hidden = max(1, round(self.expansion * features))
        h = self.project("up", x, hidden, ("embed", "mlp"), use_bias=self.use_bias)
        h = _gelu(h).reshape(x.shape[0], *grid, hidden)
        sides = (1, self.window, self.window, 1)
        # A plain number, by which JAX knows the maximum and its gradient.
        h = jax.lax.reduce_window(h, -math.inf, jax.lax.max, sides, (1,) * 4, "SAME")
        h = _gelu(h.reshape(*x.shape[:2], hidden))
        axes = ("mlp", "embed")
        scale = {"use_bias": self.use_bias, "scale": self.output_scale}
        return self.project("output", h, features, axes, **scale)


def _gelu(h: jax.Array) -> jax.Array:
    """The exact GELU, in float32 at least and rounded once."""
    wide = h.astype(statistics_dtype(h.dtype))
    return jax.nn.gelu(wide, approximate=False).astype(h.dtype)


build = MaxPool
