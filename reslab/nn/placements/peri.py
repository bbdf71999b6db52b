"""Peri-norm: sandwich norm, and a norm on the embedding (Kim et al., 2025)."""

from reslab.nn.placements.sandwich import SandwichNorm


class PeriNorm(SandwichNorm):
    """Normalizes the embedding, both ends of every sublayer, and the output.

        x = norm_embedding(embedding)
        x = x + norm_out(f(norm_in(x)))

    The gains of the output norms are learned; frozen ones hurt (as reported by
    readers of the paper). The norm on the embedding is optional there.

    Reference: Kim et al., 2025, https://arxiv.org/abs/2502.02732. The block was
    checked against the "sandwich" code of other authors; no code of these was found.

    Attributes:
      use_embedding_norm: Whether a norm precedes the first layer.
      (and those of `Placement`)
    """

    use_embedding_norm: bool = True

    @property
    def normalizes_embedding(self) -> bool:
        """Returns whether the features before the first layer need a norm."""
        return self.use_embedding_norm


build = PeriNorm
