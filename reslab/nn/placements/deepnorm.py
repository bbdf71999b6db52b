"""DeepNorm: post-norm, a stronger stream, weaker branches (Wang et al., 2022)."""

import dataclasses

import jax

from reslab.core.bounds import NonNegative, bounded
from reslab.core.precision import scaled
from reslab.core.surroundings import Context
from reslab.core.types import Branch, Residual, Stream
from reslab.nn.base import sites
from reslab.nn.placements.post import PostNorm


@bounded
class DeepNorm(PostNorm):
    """Multiplies the stream by alpha before each addition; branches start small.

        x = norm(alpha * x + f(x)),    alpha = M^(1/4),  beta = (4 M)^(-1/4)

    M is the number of sublayers applied, two in a layer of the paper. Values, output
    projections and both projections of the feed-forward layer start smaller by beta,
    queries and keys do not; beta takes the place of the usual 1/sqrt(M) on output
    projections. The paper starts from Xavier's normal distribution; here beta
    multiplies whatever the config starts from.

    Of a residual of several streams each is multiplied; the sublayer reads what it
    would have read.

    Reference: Wang et al., 2022, https://arxiv.org/abs/2203.00555 (decoder-only
    constants). Checked for alpha = 8^(1/2) against the LayerNorm-Scaling authors'
    code, which fixes that value for every depth and inverts the exponent of beta.

    Attributes:
      alpha: Factor on the stream; 0 is by depth.
      beta: Factor on the initial standard deviations; 0 is by depth.
      depth: Number of layers applied.
      sites: Where their sublayers begin.
      (and those of `Placement`)
    """

    alpha: NonNegative = 0.0
    beta: NonNegative = 0.0
    depth: int = 1
    sites: tuple[int, ...] = ()

    def adapt(self, context: Context) -> Context:
        """Values, widening and output projections start smaller by beta."""
        beta = self.beta or (4 * sites.count(self.sites, self.depth)) ** -0.25
        return dataclasses.replace(context, inner_scale=beta, output_scale=beta)

    def __call__(
        self,
        stream: Stream,
        residual: Residual,
        branch: Branch,
        *,
        site: int | jax.Array,
    ) -> Stream:
        """Applies `branch` to a stream that weighs alpha times as much."""
        alpha = self.alpha or sites.count(self.sites, self.depth) ** 0.25
        weighted = jax.tree.map(lambda leaf: scaled(leaf, alpha), stream)

        def unweighted(h):
            return branch(scaled(h, 1 / alpha))

        return super().__call__(weighted, residual, unweighted, site=site)


build = DeepNorm
