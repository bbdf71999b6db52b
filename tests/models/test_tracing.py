"""Tracing a model builds its parts once each, however many layers there are."""

import collections

import jax
import jax.numpy as jnp
import pytest

from reslab.core import registry
from reslab.models.lm import LanguageModel

# The body of a scan is traced twice, and both sublayers have the same norm.
MOST = 4


def builds(monkeypatch, **fields):
    """Counts what is built while a gradient is traced, by part and its surroundings."""
    counts = collections.Counter()
    call = registry._call

    def counted(build, written, /, **context):
        surroundings = sorted((k, repr(v)) for k, v in context.items())
        counts[repr(build), *surroundings] += 1
        return call(build, written, **context)

    model = LanguageModel(
        vocabulary_size=24,
        features=16,
        mixer="attention(heads=2)",
        max_length=8,
        **fields,
    )
    tokens = jnp.zeros((1, 4), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    registry._unbound.cache_clear()
    monkeypatch.setattr(registry, "_call", counted)
    gradient = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, tokens)))
    jax.eval_shape(gradient, variables["params"])
    monkeypatch.undo()
    return counts


@pytest.mark.parametrize("residual", ["plain", "hyper", "attnres"])
def test_builds_do_not_grow_with_depth(monkeypatch, residual):
    few, many = (builds(monkeypatch, residual=residual, depth=d) for d in (4, 48))
    assert few.total() == many.total() < 60
    assert max(few.values()) <= MOST


def test_a_trait_is_read_from_one_object():
    one, other = (registry.unbound("norms", "rms", epsilon=1e-5) for _ in range(2))
    assert one is other
    assert registry.unbound("norms", "rms") is not one
