"""DeepCrossAttention: queries, keys and values each read all earlier sublayers."""

import functools
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, bounded
from reslab.core.parameters import parameter
from reslab.core.platform import computed_once
from reslab.core.taps import tap
from reslab.core.types import Branch, Inputs
from reslab.nn.base.history import History
from reslab.nn.residuals._history import HistoryResidual


@bounded
class DeepCrossAttention(HistoryResidual):
    """Reads weighted sums of all earlier outputs, one each for query, key and value.

        g = sum_i (b_i + relu(w . y_i)) * y_i,    y_0 = embedding,  y_(i+1) = f_i(g)

    with weights b_i for every feature and w (version 3; 2 has no w, 1 has one b_i for
    all features). At first b is one and w zero, so g is the usual stream. A mixer
    reads three times, everything else and the features at the end once; nothing is
    added beside that, since the outputs are in the sum already. With `last=k` the
    sources are the embedding, the last k outputs, and the sum of those between.

    Weights are stored for all sublayers as sources, those to come among them, which
    never receive a gradient: layers that are scanned have parameters of one shape.

    Reference: Heddes et al., 2025, https://arxiv.org/abs/2502.06785. The authors have
    published no code: the golden values of g are those of the equations. How the
    feed-forward sublayer reads is not clear from what was to be had; here it reads as
    the end does. One norm stands before queries, keys and values.

    Attributes:
      version: 1, 2 or 3.
      last: Number of latest outputs with weights of their own; 0 is all.
      (and those of `HistoryResidual`)

    Raises:
      ReslabError: If the version is unknown, or `last` is negative.
    """

    version: Literal[1, 2, 3] = 3
    last: Annotated[int, Bounds(least=0, words="at least 1, or 0 for all")] = 0

    reduces_to_plain_at_init: ClassVar[bool] = True
    reads_apart: ClassVar[bool] = True

    @property
    def _rows(self) -> int:
        return self.starts[-1] + 1

    def setup(self):
        """Makes the readers, whose parameters come when they are first called."""
        make = functools.partial(
            GeneralizedSum, self._rows, self.version, self.last, self.param_dtype
        )
        self.read = make()
        if self.sublayer == "mixer":
            self.key_read, self.value_read = make(), make()

    def widen(self, x: jax.Array) -> History:
        """The embedding is the first source."""
        return History.start(x, self._rows)

    def __call__(
        self, stream: History, branch: Branch, *, site: int | jax.Array
    ) -> History:
        """Reads the sources, applies `branch`, and writes what it returns."""
        h: Any = self.read(stream, site + 1)
        if self.sublayer == "mixer":
            others = self.key_read(stream, site + 1), self.value_read(stream, site + 1)
            h = Inputs(h, *others)
        return stream.write(branch(h), site + 1)

    def narrow(self, stream: History) -> jax.Array:
        """One more reading."""
        return self.read(stream, self._rows)


class GeneralizedSum(nn.Module):
    """Sums a history with weights of sources and features, and of their content.

    Attributes:
      rows: Number of sources that there will be.
      version: 1, 2 or 3, as in `DeepCrossAttention`.
      last: Number of latest sources with weights of their own; 0 is all.
      param_dtype: Dtype in which weights are stored.
    """

    rows: int
    version: int = 3
    last: int = 0
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, history: History, count: int | jax.Array) -> jax.Array:
        """Reads the first `count` sources."""
        sources = history.before(count)
        features = history.sources[0].shape[-1]
        slots = self.last + 2 if self.last else self.rows
        shape = (slots,) if self.version == 1 else (slots, features)
        axes = (None,) if self.version == 1 else (None, "embed")
        ones = nn.initializers.ones
        weights = parameter(self, "weights", ones, shape, axes, self.param_dtype)
        weights = weights.astype(sources.dtype)
        if self.version == 1:
            weights = weights[:, None]
        vector = None
        if self.version == 3:
            zeros = nn.initializers.zeros
            args = ("vector", zeros, (features,), ("embed",), self.param_dtype)
            vector = parameter(self, *args).astype(sources.dtype)
        index, is_valid = sources.index, sources.is_valid
        is_between = jnp.zeros_like(is_valid)
        if not self.last:
            own = jnp.where(is_valid[:, None], weights[: len(index)], 0)
            is_own = is_valid
        else:
            # Slots: the embedding, the sum of sources between, and the latest ones from
            # the end.
            age = count - 1 - index
            is_between = is_valid & (index > 0) & (age >= self.last)
            is_own = is_valid & ~is_between
            slot = jnp.where(index == 0, 0, 2 + jnp.clip(age, 0, self.last - 1))
            own = jnp.where(is_own[:, None], jnp.take(weights, slot, axis=0), 0)
        # Two sums: their joint weights would be as large as the sources.
        reading = sources.mix(own[:, None, None])
        shown = jnp.mean(own, axis=-1)
        if vector is not None:
            content = jax.nn.relu(sources.dots(vector))
            content = jnp.where(is_own[:, None, None], content, 0)
            reading = reading + sources.mix(content)
            shown = shown + jnp.mean(content, axis=(1, 2))
        if self.last:
            between = sources.mix(is_between.astype(sources.dtype))
            weight = weights[1][None, None]
            if vector is not None:
                dots = jnp.sum(between * vector[None, None], axis=-1, keepdims=True)
                weight = weight + jax.nn.relu(dots)
            reading = reading + weight * between
            shown = jnp.where(is_between, jnp.mean(weight), shown)
        tap(self, "depth_weights", shown)
        return computed_once(reading.astype(history.dtype))


build = DeepCrossAttention
