"""What every variant of every family of parts keeps, found by its folder alone."""

import jax
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.parameters import logical_axes
from reslab.core.trees import is_box
from reslab.core.types import LOGICAL_AXES
from reslab.models.examples import CALLS, run_example

VARIANTS = [(family, name) for family in CALLS for name in registry.names(family)]


@pytest.fixture(params=VARIANTS, ids=lambda variant: "/".join(variant))
def variant(request):
    return request.param


def test_builds_with_defaults_and_computes_finite_numbers(variant):
    family, name = variant
    output, _ = run_example(family, name, 16)
    leaves = [leaf for leaf in jax.tree.leaves(output) if leaf.dtype.kind == "f"]
    assert leaves
    for leaf in leaves:
        assert np.all(np.isfinite(np.asarray(leaf)))


def test_parameters_name_their_logical_axes(variant):
    family, name = variant
    with logical_axes():
        variables = jax.eval_shape(lambda: run_example(family, name, 16)[1])
    boxes = jax.tree.leaves(variables.get("params", {}), is_leaf=is_box)
    for box in boxes:
        assert is_box(box), f"a parameter of shape {box.shape} names no axes"
        assert len(box.names) == len(box.value.shape)
        assert set(box.names) <= {*LOGICAL_AXES, None}
