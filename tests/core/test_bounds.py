"""Bounds are told once, and checked however a part is built."""

from typing import Annotated

import flax.linen as nn
import pytest

from reslab.core import registry
from reslab.core.bounds import Bounds, Choices, bounded, bounds_of
from reslab.core.errors import ReslabError

BOUNDED = [
    (family, name, argument, bounds)
    for family in registry.FAMILIES
    if family not in ("tasks", "writers", "images", "tokenizers")
    for name in registry.names(family)
    for argument, bounds in bounds_of(registry.module(family, name).build).items()
]


def outside(bounds):
    if isinstance(bounds, Choices):
        return ["none of them"]
    ends = [bounds.least - 1] if bounds.least is not None else []
    ends += [bounds.above] if bounds.above is not None else []
    ends += [bounds.most + 1] if bounds.most is not None else []
    return ends + ([bounds.below] if bounds.below is not None else [])


@pytest.mark.parametrize("family, name, argument, bounds", BOUNDED, ids=str)
def test_every_bound_is_checked(family, name, argument, bounds):
    context = {
        "optimizers": {"learning_rate": 0.1},
        "linears": {"features": 8},
        "schedules": {"steps": 10},
        "stacks": {"blocks": (), "depth": 1},
    }
    for value in outside(bounds):
        with pytest.raises(ReslabError) as error:
            keywords = {argument: value, **context.get(family, {})}
            registry.module(family, name).build(**keywords)
        got = repr(value) if isinstance(bounds, Choices) else f"{value:,}"
        where = f"{family} {name!r}: {argument}: expected {bounds}; got {got}"
        assert str(error.value) == where


@bounded
class Base(nn.Module):
    size: Annotated[int, Bounds(least=1)] = 2


class Derived(Base):
    share: Annotated[float, Bounds(above=0, most=1)] = 0.5

    def __post_init__(self):
        super().__post_init__()


def test_subclasses_are_checked():
    assert Derived(size=1).share == 0.5
    for keywords, message in [
        ({"size": 0}, "Derived: size: expected at least 1; got 0"),
        ({"share": 0.0}, "Derived: share: expected above 0 and at most 1; got 0.0"),
        ({"share": float("nan")}, "got nan"),
    ]:
        with pytest.raises(ReslabError, match=message):
            Derived(**keywords)


def test_functions_are_checked_by_place_and_by_name():
    @bounded
    def build(size: Annotated[int | None, Bounds(least=1)] = None):
        return size

    assert build() is None and build(3) == 3
    for call in (lambda: build(0), lambda: build(size=0)):
        with pytest.raises(ReslabError, match="size: expected at least 1"):
            call()


def test_a_spec_is_checked_against_a_literal():
    with pytest.raises(ReslabError, match="form: expected 'linear' or 'sigmoid'"):
        registry.factory("residuals", "ddl(form='cubic')")
    with pytest.raises(ReslabError, match="version: expected 1, 2 or 3; got '3'"):
        registry.factory("residuals", "dca(version='3')")
