"""The residual network for small images (He et al., 2015 and 2016)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import Count, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import NamedModule
from reslab.core.precision import statistics_dtype
from reslab.models._classifier import Classifier, as_floats
from reslab.models._convolution import Convolution
from reslab.models._inverted_bottleneck import ReversibleBottlenecks, branch_names
from reslab.nn.base.norm import branch_end, norm_and_activation
from reslab.ops.grams import patch_gram


@bounded
class ResNet(NamedModule):
    """A residual network of the CIFAR layout, with pre-activation blocks.

        x = conv(image)
        x = x + conv(act(norm(conv(act(norm(x))))))       `depth` times a stage
        logits = mean over positions(act(norm(x))) . head + bias

    Each stage but the first begins with a block of stride 2 that doubles the
    channels; its shortcut is a 1 x 1 convolution of the block's first activation.
    A norm that contains its activation (EvoNorm) stands for both; any other is
    followed by a ReLU. Norms over groups take all positions of an image.

    With `block="reversible"` every block of a stage after the first is a pair of
    inverted bottlenecks on half of the channels each, and the backward pass undoes
    them instead of keeping what they computed.

    Compute is in `dtype`, logits in float32.

    Reference: He et al., 2015, https://arxiv.org/abs/1512.03385, Section 4.2
    (layout); He et al., 2016, https://arxiv.org/abs/1603.05027, Figure 4e (order).

    Attributes:
      classes: Number of classes.
      image_shape: Height, width and channels of an image.
      features: Channels of the first stage.
      depth: Blocks in a stage.
      stages: Number of stages.
      norm: Spec of the norm, or of norm and activation in one.
      branch_norm: Spec of one more norm at the end of each branch, where the original
        order has one; "none" leaves it out. An EvoNorm there is `is_affine_only`, from
        `gain_start='zero'` where branches are to begin as nothing.
      block: "standard" or "reversible".
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.

    Raises:
      ReslabError: If the block is unknown, or stages have nothing to undo.
    """

    classes: Count
    image_shape: tuple[int, int, int]
    features: Count = 16
    depth: int = 1
    stages: Count = 3
    norm: registry.Spec = "batch"
    branch_norm: registry.Spec = "none"
    block: registry.Spec = "standard"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    task: ClassVar[str] = "images"

    def __post_init__(self):
        if self.block not in ("standard", "reversible"):
            raise ReslabError(
                "model.block of a resnet",
                expected="'standard' or 'reversible'",
                got=repr(self.block),
            )
        if self._is_reversible and self.depth < 2:
            raise ReslabError(
                "model.depth of a reversible resnet",
                expected="at least 2: the first block of a stage cannot be undone",
                got=str(self.depth),
            )
        super().__post_init__()

    @property
    def _is_reversible(self) -> bool:
        return self.block == "reversible"

    @property
    def _kept(self) -> int:
        """Blocks of a stage that keep their activations."""
        return 1 if self._is_reversible else self.depth

    def strides(self) -> dict[str, int]:
        """The stride of convolutions that mix channels, by path of their kernel.

        All but the first and the depthwise ones.
        """
        found = {}
        for stage in range(self.stages):
            for name in branch_names(self.depth - self._kept):
                for part in ("expand", "project"):
                    found[f"stage_{stage}_reversible/{name}/{part}/kernel"] = 1
            for block in range(self._kept):
                path = f"stage_{stage}_block_{block}"
                stride = 2 if stage and not block else 1
                found[f"{path}/conv_0/kernel"] = stride
                found[f"{path}/conv_1/kernel"] = 1
                if stride > 1:
                    found[f"{path}/shortcut/kernel"] = stride
        return found

    def first_grams(self, images: jax.Array) -> dict[str, jax.Array]:
        """X' X / b of the windows that the first convolution reads, by its path."""
        exact = as_floats(images, statistics_dtype(self.dtype))
        return {"stem/kernel": patch_gram(exact, (3, 3), (1, 1), "SAME")}

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Float32 logits (batch, classes) of images (batch, height, width, channels).

        Args:
          images: Floats, or integers from 0 to 255, which become -1 to 1.
        """
        x = as_floats(images, self.dtype)
        x = self._convolution(self.features, name="stem")(x)
        for stage in range(self.stages):
            for block in range(self._kept):
                x = ResidualBlock(
                    features=self.features * 2**stage,
                    stride=2 if stage and not block else 1,
                    norm=self.norm,
                    branch_norm=self.branch_norm,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"stage_{stage}_block_{block}",
                )(x)
            if self._is_reversible:
                x = ReversibleBottlenecks(
                    depth=self.depth - self._kept,
                    norm=self.norm,
                    branch_norm=self.branch_norm,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                    name=f"stage_{stage}_reversible",
                )(x)
        x = norm_and_activation(
            self.norm, is_spatial=True, param_dtype=self.param_dtype, name="norm"
        )(x)
        return Classifier(self.classes, self.param_dtype, name="head")(
            jnp.mean(x, axis=(1, 2))
        )

    def _convolution(self, features: int, **keywords) -> nn.Module:
        return Convolution(
            features, 3, dtype=self.dtype, param_dtype=self.param_dtype, **keywords
        )


class ResidualBlock(nn.Module):
    """Two convolutions, each after norm and activation, beside a shortcut.

    Attributes:
      features: Channels of the output.
      stride: Stride of the first convolution and of the shortcut.
      norm: Spec of the norm, or of norm and activation in one.
      branch_norm: Spec of the norm at the end of the branch.
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.
    """

    features: int
    stride: int
    norm: registry.Spec
    branch_norm: registry.Spec
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (..., features)."""
        shortcut, h = x, x
        for index, stride in enumerate((self.stride, 1)):
            h = norm_and_activation(
                self.norm,
                is_spatial=True,
                param_dtype=self.param_dtype,
                name=f"norm_{index}",
            )(h)
            if index == 0 and (stride > 1 or x.shape[-1] != self.features):
                shortcut = self._convolution(1, stride, name="shortcut")(h)
            h = self._convolution(3, stride, name=f"conv_{index}")(h)
        return shortcut + branch_end(self.branch_norm, self.param_dtype)(h)

    def _convolution(self, size: int, stride: int, **keywords) -> nn.Module:
        return Convolution(
            self.features,
            size,
            stride,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **keywords,
        )


build = ResNet
