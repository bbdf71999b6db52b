"""Layers that are given a router: their parameters stay."""

import pytest

from reslab.core.depth import arrange_layers, block_layers
from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves
from reslab.transforms import to_mod
from tests.transforms.conftest import drawn, flat, shapes_of

BASE = {
    "model.features": 8,
    "model.depth": 4,
    "model.mixer": "attention(heads=2)",
    "model.ffn": "gelu(hidden=6)",
}


def test_only_routers_are_new():
    fields = flat(BASE)
    params = drawn(fields)
    new, changes = to_mod.build({"params": params}, fields, layers=(2, 3))
    shapes = shapes_of(fields | changes)
    arranged = arrange_layers(
        new["params"], block_layers(new["params"]), shapes, block_layers(shapes)
    )
    found, wanted = named_leaves(arranged), named_leaves(shapes)
    assert found.keys() <= wanted.keys()
    assert [name.rpartition("/")[2] for name in wanted.keys() - found.keys()] == [
        "router_weight"
    ]
    query = "layers/body/segment_1/block_0/mixer/query/kernel"
    old = params["layers"]["body"]["segment_0"]["block_0"]["mixer"]["query"]["kernel"]
    assert (found[query] == old[2:]).all()


def test_refuses_another_stack():
    fields = flat(BASE, **{"model.stack": "looped"})
    with pytest.raises(ReslabError, match=r"to_mod: model.stack: expected 'uniform'"):
        to_mod.build({"params": drawn(fields)}, fields)
