"""Experts that layers share: the paper's schedule, and the plain layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS
from reslab.core.taps import Here, at
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.nn.ffns.experts import Experts
from reslab.nn.ffns.reused import ReusedExperts


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 6, 8))


def test_the_candidates_are_those_of_the_paper(golden):
    data = golden("rexmoe_schedule")
    each, layers, begin, end = map(int, data["experts_layers_begin_end"])
    layer = ReusedExperts(
        experts=each * layers,
        first_candidates=each,
        grows_from=begin,
        grows_until=end,
    )
    numbers = [int(layer.number(jnp.int32(t))) for t in range(41)]
    assert numbers == data["candidates"].tolist()


def test_without_the_experts_of_others_it_is_the_plain_layer(x):
    """Router columns of other layers' experts are -inf, where scores are sigmoids."""
    fields = {"hidden": 8, "chosen": 2, "scores": "sigmoid"}
    own = Experts(experts=4, is_renormalized=False, **fields)
    params = unbox(own.init(jax.random.key(1), x))["params"]
    pool = ReusedExperts(experts=8, is_first=True, **fields)
    both = unbox(pool.init(jax.random.key(2), x))["params"]
    for name in ("gate", "up", "down"):
        kernel = both[name]["kernels"].at[:4].set(params[name]["kernels"])
        both[name] = {"kernels": kernel}
    shut = jnp.full((8, 4), -1e9)
    router = jnp.concatenate([params["router"]["kernel"], shut], 1)
    # Inputs are positive, so that the large kernel shuts all of them.
    x = jnp.abs(x)
    y = pool.apply({"params": {**both, "router": {"kernel": router}}}, x)
    np.testing.assert_allclose(y, own.apply({"params": params}, x), rtol=1e-5)


def test_a_later_layer_has_a_router_alone(x):
    first = ReusedExperts(experts=4, hidden=8, is_first=True)
    variables = unbox(first.init(jax.random.key(0), x, shared={}))
    y, left = first.apply(variables, x, shared={})
    later = ReusedExperts(experts=4, hidden=8)
    params = unbox(later.init(jax.random.key(0), x, shared=left))["params"]
    assert set(params) == {"router"}
    same = {"params": {"router": variables["params"]["router"]}}
    np.testing.assert_allclose(later.apply(same, x, shared=left)[0], y, rtol=1e-6)


def test_experts_are_stored_once_for_a_group():
    tokens = jnp.zeros((1, 4), jnp.int32)

    def shapes(ffn):
        model = LanguageModel(vocabulary_size=8, features=16, depth=4, ffn=ffn)
        return unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    pooled = (
        "reused(experts=8, hidden=8, is_first=True)",
        "reused(experts=8, hidden=8)",
    )
    apart = "experts(experts=4, hidden=8)"
    routers = 4 * 16 * 4  # Those over 8 experts are wider.
    assert size(shapes(pooled)) == size(shapes(apart)) + routers


def test_while_training_few_are_asked_at_first(x):
    layer = ReusedExperts(
        experts=8, hidden=8, first_candidates=2, grows_from=2, grows_until=4
    )
    variables = unbox(layer.init(jax.random.key(0), x))
    params, stats = variables["params"], variables[BATCH_STATS]
    asked = []
    for step in range(6):
        with at(Here(site=0)):
            _, written = layer.apply(
                {"params": params, BATCH_STATS: stats},
                x,
                mutable=[BATCH_STATS, "taps"],
                rngs={"dropout": jax.random.key(step)},
            )
        stats = written[BATCH_STATS]
        load = written["taps"]["expert_load"][0]["value"]
        asked.append(int(np.sum(np.asarray(load) > 0)))
    assert asked[:3] == [2, 2, 2]
    assert asked[3] <= 5 < asked[4] <= 8
    assert int(stats["updates"]) == 6


def test_a_pool_of_another_size_and_a_path_without_it(x):
    first = ReusedExperts(experts=4, hidden=8)
    variables = unbox(first.init(jax.random.key(0), x, shared={}))
    _, left = first.apply(variables, x, shared={})
    with pytest.raises(ReslabError, match="expected 6 of 8 x 8; got 4 of 8 x 8"):
        ReusedExperts(experts=6, hidden=8).init(jax.random.key(0), x, shared=left)
    later = unbox(first.init(jax.random.key(0), x, shared=left))
    with pytest.raises(ReslabError, match="begin with the one that owns them"):
        first.apply(later, x, shared={})


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"first_candidates": 1}, "first_candidates: expected 2 to 8"),
        ({"grows_from": 3}, "grows_until: expected at least 3"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(x, fields, words):
    with pytest.raises(ReslabError, match=words):
        ReusedExperts(**fields).init(jax.random.key(0), x, shared={})
