"""Small singular values of the momentum."""

from collections.abc import Mapping
from typing import ClassVar

import jax

from reslab.core.trees import named_leaves
from reslab.observe.probes._kernels import mean_by_layer
from reslab.observe.probes._view import CannotAnswer, Quantity, View
from reslab.ops.spectra import spectrum_quantiles

# Names that optimizers give to the average or sum of gradients.
_NAMES = ("momentum", "mu", "trace", "mean")


class MomentumSpectrumProbe:
    """Quantiles of the momentum's singular values over its Frobenius norm, by layer.

    Newton-Schulz iterations raise only what lies above a floor to one; where the
    lowest quantile falls below it, a layer needs more of them (`spectral`). Averaged
    over the kernels of a layer.

    Reference: Magakyan et al., 2026, https://arxiv.org/abs/2606.04058.
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "q01": Quantity("1% quantile of the momentum's spectrum", "layer", True),
        "q10": Quantity("10% quantile of the momentum's spectrum", "layer", True),
        "q50": Quantity("median of the momentum's spectrum", "layer", True),
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes singular values in float32.

        Raises:
          CannotAnswer: If the optimizer has no momentum of kernels.
        """
        owners = sorted(named_leaves(view.params), key=len, reverse=True)
        momenta: dict[str, jax.Array] = {}
        for path, leaf in named_leaves(view.opt_state).items():
            owner = next((n for n in owners if path.endswith(f"/{n}")), None)
            if owner is not None:
                field = path.removesuffix(f"/{owner}").rpartition("/")[2]
                if field in _NAMES:
                    momenta[owner] = leaf
        if not momenta:
            raise CannotAnswer("the optimizer", expected="momentum of kernels")
        answers = {}
        for key, quantile in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5)):

            def one(matrices, quantile=quantile):
                return spectrum_quantiles(matrices, (quantile,))[:, 0]

            answers[key] = mean_by_layer(one, momenta, view.layouts)
        return answers


build = MomentumSpectrumProbe
