"""Dr.LLM's routers: decisions are paths, a cache keeps them, nothing else is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.routes import watching
from reslab.core.trees import unbox
from reslab.nn.stacks import dr_llm
from tests.nn.stacks.conftest import TOKENS, make, start


def test_ragged_rows_are_read_alone():
    router = {"in": np.eye(4, 6), "in_bias": np.ones(6), "out": np.ones((6, 3))}
    router |= {"out_bias": np.zeros(3)}
    router = jax.tree.map(np.float32, router)
    features = np.random.default_rng(0).normal(size=(2, 11, 4)).astype(np.float32)
    is_real = np.ones((2, 11), bool)
    is_real[1, [0, 3, 8, 9]] = False
    ranks = np.where(is_real, np.cumsum(is_real, axis=1) - 1, -1)
    found = dr_llm.router_logits(router, features, ranks, 4)
    for row in range(2):
        own = features[row, is_real[row]][None]
        alone = np.arange(own.shape[1])[None]
        wanted = dr_llm.router_logits(router, own, alone, 4)
        np.testing.assert_allclose(found[row], wanted[0], rtol=1e-5)


def decided(variables, decisions):
    """Routers that decide so in every row: their biases say it."""
    params = dict(variables["params"])
    layers = dict(params["layers"])
    layers["router_out"] = 0 * layers["router_out"]
    layers["router_out_bias"] = np.eye(3, dtype=np.float32)[np.array(decisions)]
    return {"params": {**params, "layers": layers}}


def base_of(variables):
    params = dict(variables["params"])
    layers = params["layers"]
    return {"params": {**params, "layers": {"body": layers["body"]}}}


@pytest.mark.parametrize(
    "mixer",
    [
        "attention(heads=2)",
        pytest.param(("gru", "attention(heads=2)"), marks=pytest.mark.conformance),
    ],
)
def test_decisions_are_a_path(mixer):
    model = make("dr_llm(hidden=5, prompt=3)", mixer=mixer)
    variables = start(model)
    for decisions, path in (
        ((1, 1, 1, 1), (0, 1, 2, 3)),
        ((0, 2, 1, 0), (1, 1, 2)),
    ):
        found = jax.jit(model.apply)(decided(variables, decisions), TOKENS)
        other = make(f"path(layers={path})", mixer=mixer)
        wanted = other.apply(base_of(variables), TOKENS)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_starts_as_the_uniform_stack():
    model = make("dr_llm")
    variables = unbox(jax.jit(model.init)(jax.random.key(0), TOKENS))
    wanted = make("uniform").apply(base_of(variables), TOKENS)
    np.testing.assert_allclose(model.apply(variables, TOKENS), wanted, atol=1e-6)
    all_once = make("dr_llm(budget=0.5, hidden=5)")
    variables = start(all_once)
    wanted = make("uniform").apply(base_of(variables), TOKENS)
    np.testing.assert_allclose(all_once.apply(variables, TOKENS), wanted, atol=1e-6)


def test_rows_decide_for_themselves():
    model = make("dr_llm(hidden=5, prompt=3)")
    variables = start(model, 1.0)
    variables["params"]["layers"]["router_out"] *= 10
    with watching() as found:
        whole = model.apply(variables, TOKENS)
    assert np.any(found.times[0] != found.times[1])
    assert found.scores.shape == (2, 4, 3)
    for row in range(2):
        path = [n for n in range(4) for _ in range(int(found.times[row, n]))]
        alone = model.apply(variables, TOKENS[row : row + 1])
        np.testing.assert_allclose(whole[row], alone[0], atol=1e-5)
        if path:
            other = make(f"path(layers={tuple(path)})")
            wanted = other.apply(base_of(variables), TOKENS)[row]
            np.testing.assert_allclose(whole[row], wanted, atol=1e-5)
    with watching(np.array([[1, 1, 1, 1], [0, 2, 1, 0]])) as taught:
        after = model.apply(variables, TOKENS)
    np.testing.assert_array_equal(taught.times, [[1, 1, 1, 1], [0, 2, 1, 0]])
    wanted = make("path(layers=(1, 1, 2))").apply(base_of(variables), TOKENS)
    np.testing.assert_allclose(after[1], wanted[1], atol=1e-5)


def test_a_cache_keeps_the_decisions():
    model = make("dr_llm(hidden=5, prompt=4)")
    variables = start(model, 1.0)
    variables["params"]["layers"]["router_out"] *= 10
    with watching() as found:
        wanted = model.apply(variables, TOKENS)
    state, parts = model.init_state(2, 6), []
    for first, last in ((0, 4), (4, 5), (5, 6)):
        x, state = model.apply(
            *(variables, TOKENS[:, first:last]),
            positions=np.broadcast_to(np.arange(first, last), (2, last - first)),
            state=state,
            method="hidden",
        )
        parts.append(model.apply(variables, x, method="logits"))
    np.testing.assert_allclose(jnp.concatenate(parts, 1), wanted, atol=1e-4)
    np.testing.assert_array_equal(state[1], found.times.T)


def test_layers_that_no_row_applies_are_not_computed():
    """Their parameters are not numbers, which a product with zero would show."""
    model = make("dr_llm(hidden=5)")
    variables = decided(start(model), (1, 0, 1, 1))
    body = variables["params"]["layers"]["body"]
    broken = jax.tree.map(lambda a: a.at[1].set(jnp.nan), jax.tree.map(jnp.array, body))
    params = variables["params"]
    layers = {**params["layers"], "body": broken}
    broken = {"params": {**params, "layers": layers}}
    run = jax.jit(model.apply)
    np.testing.assert_array_equal(run(broken, TOKENS), run(variables, TOKENS))


def test_refuses_a_history_and_a_budget():
    model = make("dr_llm", residual="attnres")
    variables = start(model)
    with pytest.raises(ReslabError, match="what every earlier layer wrote"):
        model.apply(variables, TOKENS)
    with pytest.raises(ReslabError, match="budget"):
        make("dr_llm(budget=1.5)").init(jax.random.key(0), TOKENS)
