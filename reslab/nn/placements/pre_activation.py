"""Pre-norm, and a norm before every activation (Lyle et al., 2024)."""

import dataclasses
from typing import ClassVar

from reslab.core.surroundings import Context
from reslab.nn.placements._sublayer import Placement


class PreActivationNorm(Placement):
    """Normalizes what a sublayer reads, and what its activation reads.

        x = x + f(norm(x)),    f(h) = W_2 act(norm(W_1 h))

    A gated layer has a norm in each half. Every kernel that widens is then free of
    scale: multiplied by a positive number it computes the same. It is the model's part
    of Normalize-and-Project; optimizer `normalize_and_project` keeps the sizes. The
    softmax of attention has a norm before it by `attention(qk_norm='rms')`.

    Reference: Lyle et al., 2024, https://arxiv.org/abs/2407.01800, Section 3. The
    authors have published no code: tested by the equation and by the freedom of scale.
    """

    normalizes_input: ClassVar[bool] = True

    def adapt(self, context: Context) -> Context:
        """A norm before the activations."""
        return dataclasses.replace(context, activation_norm=self.norm)


build = PreActivationNorm
