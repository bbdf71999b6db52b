import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.surroundings import Context, reserved
from reslab.models.lm import LanguageModel


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_variant_can_be_imported_and_built_from_its_name(family):
    assert registry.names(family)
    for name in registry.names(family):
        assert callable(registry.module(family, name).build)
        assert callable(registry.factory(family, name))


def test_parse():
    assert registry.parse("a") == registry.Parsed("a", {})
    parsed = registry.parse(" my.lab.norm(a=-1.5, b='x', c=(1, 2), d=None) ")
    assert parsed.name == "my.lab.norm"
    assert parsed.arguments == {"a": -1.5, "b": "x", "c": (1, 2), "d": None}


@pytest.mark.parametrize(
    "spec",
    ["", "a(", "a(1)", "a(b=c)", "a(b=1, b=2)", "a(**{})", "1", "a b", "a(b=f())"],
)
def test_malformed_specs(spec):
    with pytest.raises(ReslabError, match="malformed spec"):
        registry.parse(spec)


@pytest.mark.parametrize(
    ("family", "spec", "line"),
    [
        ("transforms", "share_kv(layers=2)", "'layers': try: one of share$"),
        ("transforms", "share_kv(fields=2)", "fields is not set in a spec"),
        ("probes", "stream(foo=1)", "no argument 'foo': try: it takes none$"),
        ("stacks", "uniform(foo=1)", "no argument 'foo': try: it takes none$"),
    ],
)
def test_only_arguments_of_a_spec_are_proposed(family, spec, line):
    with pytest.raises(ReslabError, match=line):
        registry.factory(family, spec)


def test_nothing_is_evaluated(tmp_path):
    target = tmp_path / "made"
    with pytest.raises(ReslabError):
        registry.parse(f"rms(epsilon=open({str(target)!r}, 'w'))")
    assert not target.exists()


def test_the_spec_wins_over_the_context():
    norm = registry.make("norms", "rms(epsilon=0.5)", epsilon=0.1, unknown=3)
    assert norm.epsilon == 0.5


def test_a_callable_is_a_spec():
    def build(epsilon):
        return epsilon

    assert registry.make("norms", build, epsilon=2.0, unknown=3) == 2.0


def test_types_are_checked_against_annotations():
    for spec in ("hyper(streams='a')", "hyper(streams=1.5)", "hyper(streams=True)"):
        with pytest.raises(ReslabError, match="streams: expected int"):
            registry.factory("residuals", spec)
    assert registry.make("norms", "rms(epsilon=1)").epsilon == 1


def test_files_that_define_no_build_are_no_variants():
    found = registry.names("optimizers")
    assert {"adamw", "sgd"} <= set(found)
    assert not {"groups", "clipping", "orthogonalization"} & set(found)
    assert "_warmup" not in registry.names("schedules")


def test_a_module_without_build():
    with pytest.raises(ReslabError, match="a module with `build`"):
        registry.module("norms", "json.decoder")


def test_what_surroundings_give_is_refused_in_a_spec():
    for family in registry.FAMILIES:
        for name in registry.names(family):
            taken = registry.arguments(registry.module(family, name).build)
            for argument in taken.keys() & reserved(family):
                with pytest.raises(ReslabError, match=f"{argument} is not set in a"):
                    registry.factory(family, f"{name}({argument}=1)")


def test_surroundings_give_what_is_reserved_or_a_default(monkeypatch):
    passed, make = collections.defaultdict(set), registry.factory

    def factory(family, spec):
        build = make(family, spec)

        def record(**context):
            passed[family] |= context.keys()
            return build(**context)

        return record

    monkeypatch.setattr(registry, "factory", factory)
    tokens = jnp.zeros((1, 4), jnp.int32)
    for fields in ({"block": "macaron"}, {"block": "hourglass(lift=48)"}):
        model = LanguageModel(
            vocabulary_size=8,
            features=16,
            depth=2,
            placement="mix_ln",
            position="learned",
            max_length=4,
            **fields,
        )
        jax.eval_shape(model.init, jax.random.key(0), tokens)
    # Linen's own; specs of other fields of the model; those of the part around.
    free = {"parent", "name"} | {"mixer", "ffn", "norm", "placement"}
    free |= {"embedding_std", "use_bias", "scale", "kv_heads", "window"}
    free |= {f.name for f in dataclasses.fields(Context)} - reserved("mixers")
    assert {"stacks", "blocks", "residuals", "linears"} <= passed.keys()
    for family, names in passed.items():
        assert names <= reserved(family) | free, family


def test_a_class_with_arguments_filled_in_is_of_the_family_it_is_used_in():
    """Or else nobody tells it the layer and the pass that it asks for."""

    class Mine:
        pass

    assert registry.family_of(Mine) is None
    registry.factory("norms", functools.partial(functools.partial(Mine), 1))
    assert registry.family_of(Mine) == "norms"
