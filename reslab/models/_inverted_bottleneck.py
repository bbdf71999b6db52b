"""Inverted bottlenecks that can be undone, for residual networks of images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.trees import unbox
from reslab.models._convolution import Convolution
from reslab.nn.base.coupling import Coupled, undo
from reslab.nn.base.norm import branch_end, norm_and_activation


def branch_names(depth: int) -> list[str]:
    """The names of the bottlenecks of reversible blocks, in order."""
    return [f"block_{i}_{branch}" for i in range(depth) for branch in "fg"]


class ReversibleBottlenecks(nn.Module):
    """Blocks of two inverted bottlenecks, each on one half of the channels.

        a = a + f(b),    b = b + g(a)                            `depth` times
        undone by    b = b - g(a),    a = a - f(b)

    The backward pass starts from the end and finds what each bottleneck has read by
    undoing it, so nothing is kept but the end, however many blocks there are. Each
    bottleneck is computed once more; running statistics are updated the first time
    alone. The halves are kept in at least float32.

    Reference: Gomez et al., 2017, https://arxiv.org/abs/1707.04585, Section 3.2. No
    code of the authors has this with inverted bottlenecks; Chiley et al., 2022,
    https://arxiv.org/abs/2206.14098, describe such blocks.

    Attributes:
      depth: Number of blocks.
      norm: Spec of the norm, or of norm and activation in one.
      branch_norm: Spec of the norm at the end of a branch; "none" leaves it out.
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.
    """

    depth: int
    norm: registry.Spec
    branch_norm: registry.Spec = "none"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels), of even width, to the same shape.

        Raises:
          ReslabError: If channels cannot be halved, or the norm has state that its
            backward pass writes.
        """
        if x.shape[-1] % 2:
            raise ReslabError(
                "model.features of a reversible resnet",
                expected="an even number",
                got=str(x.shape[-1]),
            )
        older, newer = jnp.split(x.astype(statistics_dtype(x.dtype)), 2, axis=-1)
        stream = Coupled(older, newer, x.dtype)
        if self.is_initializing():
            for name in branch_names(self.depth):
                stream = stream.write(self._bottleneck(name=name)(stream.read()))
        else:
            stream = self._without_keeping(stream)
        if self.variables.get(GRADIENT_STATS):
            raise ReslabError(
                f"model.norm {self.norm!r} of a reversible resnet",
                expected="a norm whose backward pass writes no state",
                hint="batch, group or evonorm_s0",
            )
        halves = [stream.older, stream.newer]
        return jnp.concatenate(halves, axis=-1).astype(x.dtype)

    def _bottleneck(self, **keywords: Any) -> "InvertedBottleneck":
        return InvertedBottleneck(
            norm=self.norm,
            branch_norm=self.branch_norm,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **keywords,
        )

    def _without_keeping(self, stream: Coupled) -> Coupled:
        branch = self._bottleneck(parent=None)
        mutable = [BATCH_STATS] if self.is_mutable_collection(BATCH_STATS) else []

        def apply(h, params, state):
            variables = {"params": params, **({BATCH_STATS: state} if state else {})}
            outcome: Any = branch.apply(variables, h, mutable=mutable)
            return outcome

        def run(params, states, stream):
            written = {}
            for name in branch_names(self.depth):
                y, changed = apply(stream.read(), params[name], states.get(name))
                written[name] = changed.get(BATCH_STATS, {})
                stream = stream.write(y)
            return stream, written

        def forward(params, states, stream):
            after, written = run(params, states, stream)
            return (after, written), (params, states, after)

        def backward(saved, cotangents):
            params, states, after = saved
            cotangent, _ = cotangents
            by_params = {}
            for name in reversed(branch_names(self.depth)):

                def added(h, params, name=name):
                    return apply(h, params, states.get(name))[0]

                after, cotangent, (by_params[name],) = undo(
                    added, after, cotangent, params[name]
                )
            return by_params, None, cotangent

        scan = jax.custom_vjp(run)
        scan.defvjp(forward, backward)
        params = unbox(self.variables["params"])
        states = unbox(self.variables.get(BATCH_STATS, {}))
        stream, written = scan(params, states, stream)
        for name, state in written.items():
            if state:
                self.put_variable(BATCH_STATS, name, state)
        return stream


class InvertedBottleneck(nn.Module):
    """Widens, convolves each channel separately, weighs the channels, and narrows.

        h = act(norm(expand(x)));  h = act(norm(depthwise(h)));  y = project(s * h)
        s = sigmoid(W act(V mean over positions(h) + c) + b)

    The last projection is linear. The original has one more norm after it, here
    `branch_norm`, apart because a norm may contain an activation.

    Reference: Sandler et al., 2018, https://arxiv.org/abs/1801.04381, Section 3.3;
    channel weights: Hu et al., 2017, https://arxiv.org/abs/1709.01507, Eq. 2-4.

    Attributes:
      norm: Spec of the norm, or of norm and activation in one.
      branch_norm: Spec of the norm at the end of a branch; "none" leaves it out.
      expansion: Channels inside over channels outside.
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.
    """

    norm: registry.Spec
    branch_norm: registry.Spec = "none"
    expansion: int = 4
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to the same shape."""
        features, hidden = x.shape[-1], self.expansion * x.shape[-1]
        h = self._convolution(hidden, 1, name="expand")(x)
        h = self._norm("norm_0")(h)
        h = self._convolution(hidden, 3, is_depthwise=True, name="depthwise")(h)
        h = self._norm("norm_1")(h)
        h = h * self._channel_weights(h, max(1, features // 4))
        h = self._convolution(features, 1, name="project")(h)
        return branch_end(self.branch_norm, self.param_dtype)(h)

    def _channel_weights(self, h: jax.Array, narrow: int) -> jax.Array:
        mean = jnp.mean(h, axis=(1, 2), keepdims=True)
        squeezed = self._affine(mean, narrow, "squeeze")
        return jax.nn.sigmoid(
            self._affine(jax.nn.relu(squeezed), h.shape[-1], "excite")
        )

    def _affine(self, h: jax.Array, features: int, name: str) -> jax.Array:
        bias = parameter(
            self,
            f"{name}_bias",
            nn.initializers.zeros,
            (features,),
            ("embed",),
            self.param_dtype,
        )
        product = self._convolution(features, 1, name=name)(h)
        return product + bias.astype(product.dtype)[None, None, None]

    def _norm(self, name: str) -> Any:
        return norm_and_activation(
            self.norm, is_spatial=True, param_dtype=self.param_dtype, name=name
        )

    def _convolution(self, features: int, size: int, **keywords: Any) -> nn.Module:
        return Convolution(
            features,
            size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **keywords,
        )
