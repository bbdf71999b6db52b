"""Bounds are told once, and checked however a part is built."""

import ast
import collections.abc
import inspect
import typing
from typing import Annotated

import flax.linen as nn
import pytest

from reslab.core import registry
from reslab.core.bounds import Bounds, Choices, bounded, bounds_of
from reslab.core.errors import ReslabError
from reslab.core.surroundings import reserved
from reslab.optim.base.group import parse_groups

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
        "models": {"vocabulary_size": 8},
        "transforms": {"variables": {}, "fields": {}},
        "series": {"path": "series.csv"} if name == "csv" else {},
    }
    if name == "resnet":
        context["models"] = {"classes": 2, "image_shape": (8, 8, 1)}
    if name in ("vit", "forecaster", "frames"):
        context["models"] = {}
    for value in outside(bounds):
        with pytest.raises(ReslabError) as error:
            keywords = context.get(family, {}) | {argument: value}
            registry.module(family, name).build(**keywords)
        got = repr(value) if isinstance(bounds, Choices) else f"{value:,}"
        where = f"{family} {name!r}: {argument}: expected {bounds}; got {got}"
        assert str(error.value) == where


# Numbers in tuples, which the parts themselves compare with what they are given.
COMPARED = {
    ("stacks", "path", "layers"),
    # A name or a number, compared with the names.
    ("linears", "lora", "task"),
    ("sources", "mixture", "weights"),
    ("models", "resnet", "image_shape"),
    ("models", "vit", "image_shape"),
    ("models", "frames", "image_shape"),
    ("transforms", "share_kv", "share"),
    ("transforms", "to_path", "layers"),
}


def kinds(hint):
    """The classes that an annotation names, at any depth."""
    inner = [one for one in typing.get_args(hint) if one is not ...]
    if typing.get_origin(hint) in (typing.Literal, collections.abc.Callable):
        return set()
    return set().union(*map(kinds, inner)) if inner else {hint}


def numbers():
    for family in registry.FAMILIES:
        for name in registry.names(family):
            build = registry.module(family, name).build
            hints = typing.get_type_hints(
                build.__init__ if inspect.isclass(build) else inspect.unwrap(build)
            )
            for argument in registry.arguments(build):
                if argument in reserved(family) or (family, name) == ("tasks", "auto"):
                    continue
                if found := kinds(hints.get(argument)) & {int, float}:
                    yield family, name, argument, build, found


def test_every_number_has_a_range():
    """No argument takes -1, 1e30 or an infinity, unless its range says so."""
    missing, open_ended, unchecked = set(), [], []
    for family, name, argument, build, found in numbers():
        bounds = bounds_of(build).get(argument)
        if bounds is None:
            missing.add((family, name, argument))
            continue
        low = bounds.least is not None or bounds.above is not None
        high = bounds.most is not None or bounds.below is not None
        # Integers of specs have 31 bits.
        if not (low and (high or float not in found)):
            open_ended.append((family, name, argument))
        check = build.__post_init__ if inspect.isclass(build) else build
        if not getattr(check, "is_checking", False):
            unchecked.append((family, name))
        for value in (float("inf"), float("-inf"), float("nan"), -1e30):
            assert value not in bounds
    assert missing == COMPARED
    assert not open_ended and not unchecked


def test_a_positive_number_is_one_in_float32_too():
    for spec in ("mup(wider=1e-300)", "layer_decay(decay=1e-40)"):
        with pytest.raises(ReslabError, match=r"above 0 and .* no less than 1e-18"):
            registry.make("scalings", spec)


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        ("optimizers", "muon(ns_steps=1000000)"),
        ("optimizers", "normuon(ns_steps=1000000)"),
        ("optimizers", "importance_sparse(trials=1000000)"),
        ("residuals", "mhc(iterations=1000000)"),
    ],
)
def test_a_step_repeats_no_computation_for_hours(family, spec):
    with pytest.raises(ReslabError, match="at most 256; got 1,000,000"):
        registry.make(family, spec, learning_rate=lambda step: 0.1)


@pytest.mark.parametrize(
    "spec",
    [
        "cosine(final=-1.0)",
        "linear(final=-5.0)",
        "wsd(final=3.0)",
        "infinite(shape='inverse_sqrt', sharpness=0.0)",
        "infinite(shape='inverse_sqrt', sharpness=-5.0)",
        "cosine(final=1e999)",
    ],
)
def test_schedules_stay_between_their_ends(spec):
    with pytest.raises(ReslabError, match="expected"):
        registry.make("schedules", spec, steps=10)


@pytest.mark.parametrize("value", ["-1.0", "1e999", "-1e999"])
@pytest.mark.parametrize("option", ["lr", "lr_scale", "weight_decay", "clip"])
def test_options_of_groups_have_ranges(option, value):
    with pytest.raises(ReslabError, match=rf"'\.': {option}: expected at least 0"):
        parse_groups([(".", {option: ast.literal_eval(value)})])


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
    with pytest.raises(ReslabError, match="form: expected 'linear', 'sigmoid' or"):
        registry.factory("residuals", "ddl(form='cubic')")
    with pytest.raises(ReslabError, match="version: expected 1, 2 or 3; got '3'"):
        registry.factory("residuals", "dca(version='3')")
