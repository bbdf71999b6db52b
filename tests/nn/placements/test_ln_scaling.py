"""Pre-norm over the root of the layer; whole stacks are in test_goldens.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from reslab.nn.placements.ln_scaling import LayerNormScaling
from reslab.nn.placements.pre import PreNorm
from reslab.nn.residuals.plain import Plain


def apply(kind, x, site, branch=lambda h: h):
    params = {"params": {"input_norm": {"gain": np.zeros(x.shape[-1])}}}
    return kind(param_dtype=jnp.float64).apply(params, x, Plain(), branch, site=site)


@pytest.mark.parametrize("site, layer", [(0, 1), (1, 1), (2, 2), (7, 4)])
def test_both_sublayers_of_a_layer_are_scaled_alike(x64, site, layer):
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    added = apply(LayerNormScaling, x, site) - x
    unscaled = apply(PreNorm, x, site) - x
    np.testing.assert_allclose(added, unscaled / layer**0.5, rtol=1e-7)


@pytest.mark.conformance
def test_output_projections_do_not_start_smaller(small_variables):
    """The depth is taken care of once."""
    name = "params/layers/body/segment_0/block_0/mixer/output/kernel"
    scaled = small_variables(placement="ln_scaling", depth=8)[name]
    usual = small_variables(placement="pre", depth=8)[name]
    np.testing.assert_allclose(np.std(scaled) / np.std(usual), 4.0, rtol=0.05)
