"""How heavy the tails of the weights' spectra are."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.core.spectra import eigenvalues, tail_exponents
from reslab.core.trees import named_leaves
from reslab.observe.probes._view import CannotAnswer, Quantity, View


class HeavyTailProbe:
    """Exponent alpha of the eigenvalues of each layer's kernels, averaged.

    Small exponents are heavy tails; between 2 and 6 a layer is well trained, by the
    theory of heavy-tailed self-regularization; above, it has learned little.

    Reference: Martin & Mahoney, 2021, https://arxiv.org/abs/1810.01075.

    Args:
      estimator: How the exponent is fitted; see `reslab.core.spectra`.
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "alpha": Quantity("exponent of the tail of the kernels' spectra", "layer")
    }

    def __init__(self, estimator: str = "hill"):
        self._estimator = estimator

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes singular values in float32.

        Raises:
          CannotAnswer: If no layer has a kernel.
        """
        layouts, found = named_leaves(view.layouts), {}
        for name, leaf in named_leaves(view.params).items():
            layout = layouts[name]
            if layout.kind == "matrix" and layout.layers:
                matrices = layout.as_matrices(leaf.astype(jnp.float32))
                alphas = tail_exponents(eigenvalues(matrices), self._estimator)
                # Experts of a layer count as one kernel.
                each = alphas.reshape(len(layout.layers), -1)
                found[name] = jnp.mean(each, axis=1)
        if not found:
            raise CannotAnswer("the model", expected="kernels in layers")
        depth = 1 + max(max(layouts[name].layers) for name in found)
        sums, counts = jnp.zeros(depth), jnp.zeros(depth)
        for name, alphas in found.items():
            at = jnp.asarray(layouts[name].layers)
            sums, counts = sums.at[at].add(alphas), counts.at[at].add(1.0)
        return {"alpha": sums / jnp.maximum(counts, 1.0)}


build = HeavyTailProbe
