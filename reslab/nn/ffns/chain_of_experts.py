"""Experts in several rounds: what they answer is routed again, to the same experts."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax

from reslab.core.bounds import Count, NonNegative, bounded
from reslab.nn.ffns.experts import Experts


@bounded
class ChainOfExperts(Experts):
    """Asks experts several times, each time about what they answered before.

        x_t = experts(x_(t-1); router_t) + x_(t-1),    y = x_T

    The experts are the same in every round, and each round has a router of its own.
    With `chosen / T` experts in a round it costs what one round of `chosen` does.

    The authors' layer drops the stream: the answer, which holds the normalized input
    once more, is what follows. Here the residual stays around it, as around any other
    layer.

    Reference: Wang et al., 2025, https://arxiv.org/abs/2506.18945.

    Tested against the authors' code, with the gradient of its balance.

    Attributes:
      iterations: Number of rounds, T.
      has_residual: Whether a round adds its input to what the experts answer.
      (and those of `Experts`)

    Raises:
      ReslabError: As for `Experts`.
    """

    iterations: Count = 2
    has_residual: bool = True
    is_renormalized: bool = False
    balance: Literal["loss", "sequence", "bias", "none"] = "sequence"
    rate: NonNegative = 0.001

    def asked_parameters(self, features: int, times: int = 1) -> int:
        """The most parameters of experts that a token asks, over all rounds."""
        return super().asked_parameters(features, times * self.iterations)

    def mixing_flops(self, length: int, features: int) -> int:
        """FLOPs of all rounds, and of dense kernels in those after the first."""
        dense = 2 * self.latent * features + 3 * self.shared_hidden * features
        dense += features * bool(self.shared_hidden and self.is_shared_gated)
        of_round = super().mixing_flops(length, features)
        return self.iterations * of_round + 2 * (self.iterations - 1) * dense

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Maps (batch, length, embed) to the same shape.

        Args:
          x: The input.
          mask: Which tokens are in a document (batch, length); None is all.
        """
        fields = {field.name for field in dataclasses.fields(Experts) if field.init}
        fields -= {"parent", "name"}
        experts = Experts(
            **{name: getattr(self, name) for name in fields}, name="experts"
        )
        h = x
        for number in range(self.iterations):
            logits = self.route(h, f"router_{number}")
            answer = experts(h, mask=mask, logits=logits)
            h = h + answer if self.has_residual else answer
        return h


build = ChainOfExperts
