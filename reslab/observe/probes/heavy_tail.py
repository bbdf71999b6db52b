"""Tail exponents of the weights' spectra."""

from collections.abc import Mapping
from typing import ClassVar

import jax

from reslab.core.trees import named_leaves
from reslab.observe.probes._kernels import mean_by_layer
from reslab.observe.probes._view import Quantity, View
from reslab.ops.spectra import Estimator, eigenvalues, tail_exponents


class HeavyTailProbe:
    """Exponent alpha of the eigenvalues of each layer's kernels, averaged.

    Small exponents are heavy tails; between 2 and 6 a layer is well trained, by the
    theory of heavy-tailed self-regularization; above, it has learned little.

    Reference: Martin & Mahoney, 2021, https://arxiv.org/abs/1810.01075.

    Args:
      estimator: How the exponent is fitted; see `reslab.ops.spectra`.
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "alpha": Quantity("exponent of the tail of the kernels' spectra", "layer")
    }

    def __init__(self, estimator: Estimator = "hill"):
        self._estimator = estimator

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes singular values in float32.

        Raises:
          CannotAnswer: If no layer has a kernel.
        """

        def exponents(matrices):
            return tail_exponents(eigenvalues(matrices), self._estimator)

        kernels = named_leaves(view.params)
        return {"alpha": mean_by_layer(exponents, kernels, view.layouts)}


build = HeavyTailProbe
