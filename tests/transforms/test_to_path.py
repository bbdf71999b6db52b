"""A run along a path is the model of that path."""

import functools

import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.transforms import to_path
from tests.transforms import conftest
from tests.transforms.conftest import converted, drawn, logits

BASE = {
    "model.features": 8,
    "model.depth": 3,
    "model.mixer": "attention(heads=2)",
    "model.ffn": "gelu(hidden=6)",
}

flat = functools.partial(conftest.flat, BASE)


def test_the_layers_are_those_of_the_run():
    fields = flat()
    params = drawn(fields)
    whole, same = converted(to_path, fields, params, layers=(0, 1, 2))
    np.testing.assert_array_equal(logits(whole, same), logits(fields, params))
    some, own = converted(to_path, whole, same, layers=[2, 0, 0])
    assert some["model.stack"] == "path(layers=(2, 0, 0))"
    assert np.any(logits(some, own) != logits(fields, params))


def test_refuses_stacks_of_other_parameters():
    fields = flat(**{"model.stack": "looped"})
    with pytest.raises(ReslabError, match="expected 'uniform' or 'path'"):
        to_path.build({"params": {}}, fields, layers=(0,))
