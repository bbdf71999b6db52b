import jax
import numpy as np
import pytest

from reslab.core.trees import unbox
from reslab.nn.ffns.polyrelu import PolyReLUFeedForward


@pytest.mark.parametrize("case", ["dev"])
def test_golden(assert_is_golden, case):
    assert_is_golden(PolyReLUFeedForward, "polyrelu", case)


def test_starts_with_thirds_and_no_constant():
    x = np.zeros((1, 1, 4), np.float32)
    params = unbox(PolyReLUFeedForward(hidden=4).init(jax.random.key(0), x))["params"]
    thirds = np.asarray([0, 1 / 3, 1 / 3, 1 / 3], np.float32)
    np.testing.assert_array_equal(params["coefficients"], thirds)
