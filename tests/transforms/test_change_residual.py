import re

import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.transforms import change_residual

FIELDS = {
    "model.residual": "plain",
    "model.depth": 4,
    "model.block": "standard",
    "model.stack": "uniform",
}


@pytest.mark.parametrize(
    "to",
    [
        "hyper(streams=2)",
        "ddl(blend=0.0)",
        "denseformer",
        "delta_attnres(gate='alpha')",
        "delta_attnres(block_layers=2, use_null=True, null_bias=20.0)",
        # As many sublayers as the model has, twice its layers.
        "delta_attnres(gate='alpha', block=8)",
        "plain",
    ],
)
def test_keeps_every_parameter(to):
    variables = {"params": {"embedding": np.ones(3)}}
    new, changes = change_residual.build(variables, FIELDS, to=to)
    assert new is variables
    assert changes == {"model.residual": to}


@pytest.mark.parametrize(
    ("given", "to", "message"),
    [
        ("plain", "ddl", "'ddl' does not start as a plain residual"),
        ("plain", "attnres", "'attnres' does not start as a plain residual"),
        ("plain", "rezero", "'rezero' does not start as a plain residual"),
        ("hyper", "plain", "model.residual: expected plain; got 'hyper'"),
    ],
)
def test_refuses_what_it_cannot_convert(given, to, message):
    fields = FIELDS | {"model.residual": given}
    with pytest.raises(ReslabError, match=re.escape(message)) as error:
        change_residual.build({"params": {}}, fields, to=to)
    assert "\n" not in str(error.value)
