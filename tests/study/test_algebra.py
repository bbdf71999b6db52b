import pytest

from reslab.core.errors import ReslabError
from reslab.study.algebra import case, chain, product, vary, zipped


def names(sweep):
    return [one.name for one in sweep]


def test_vary_names_cases_by_value_or_by_name():
    sweep = vary("model.norm", "rms", bare="rms(use_gain=False)")
    assert names(sweep) == ["norm=rms", "bare"]
    assert sweep[1].fields == {"model.norm": "rms(use_gain=False)"}
    tiled = vary("model.mixer", ("gated_delta", "attention"))
    assert names(tiled) == ["mixer=gated_delta+attention"]


def test_product_is_every_pair_in_order():
    sweep = product(vary("a.x", 1, 2), vary("a.y", 3, 4))
    assert [dict(one.fields) for one in sweep] == [
        {"a.x": 1, "a.y": 3},
        {"a.x": 1, "a.y": 4},
        {"a.x": 2, "a.y": 3},
        {"a.x": 2, "a.y": 4},
    ]
    assert names(sweep)[1] == "x=1 y=4"


def test_zipped_goes_along_both():
    sweep = zipped(vary("a.x", 1, 2), vary("a.y", 3, 4))
    assert [dict(one.fields) for one in sweep] == [
        {"a.x": 1, "a.y": 3},
        {"a.x": 2, "a.y": 4},
    ]


def test_chain_and_named_cases_compose():
    sweep = chain(case("base"), product(case("wide", {"a.z": 9}), vary("a.x", 1, 2)))
    assert names(sweep) == ["base", "wide x=1", "wide x=2"]
    assert sweep[2].fields == {"a.z": 9, "a.x": 2}


@pytest.mark.parametrize("join", [product, zipped])
def test_a_field_is_set_once(join):
    with pytest.raises(ReslabError, match=r"a\.x is set by two"):
        join(vary("a.x", 1), vary("a.x", 2))


def test_zipped_needs_equal_lengths():
    with pytest.raises(ReslabError, match="equal length; got 2, 1"):
        zipped(vary("a.x", 1, 2), vary("a.y", 3))
