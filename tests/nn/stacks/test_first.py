"""FiRST: routers that learn to skip, and what they decide then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.losses import LOSSES, total_loss
from reslab.core.model_state import BATCH_STATS
from reslab.core.routes import watching
from reslab.core.trees import unbox
from tests.nn.stacks.conftest import TOKENS, make

STACK = "first(prompt=4, target=0.5, balance=0.3, binary=0.2)"


def variables_of(model, bias=None):
    variables = unbox(jax.jit(model.init)(jax.random.key(0), TOKENS))
    layers = variables["params"]["layers"]
    rng = np.random.default_rng(2)
    layers["router_in"] = rng.normal(size=(4, 8)).astype(np.float32)
    if bias is not None:
        layers["router_bias"] = np.array(bias, np.float32)
    return variables


def base_of(variables):
    layers = {"body": variables["params"]["layers"]["body"]}
    return {"params": {**variables["params"], "layers": layers}}


def test_starts_as_the_uniform_stack():
    model = make(STACK)
    variables = unbox(jax.jit(model.init)(jax.random.key(0), TOKENS))
    wanted = make("uniform").apply(base_of(variables), TOKENS)
    np.testing.assert_allclose(model.apply(variables, TOKENS), wanted, atol=1e-6)


def test_what_is_skipped_is_a_path_and_is_not_computed():
    model = make(STACK)
    variables = variables_of(model, (9, -9, 9, -9))
    wanted = make("path(layers=(0, 2))").apply(base_of(variables), TOKENS)
    layers = variables["params"]["layers"]
    layers["body"] = jax.tree.map(
        lambda a: jnp.asarray(a).at[jnp.array([1, 3])].set(jnp.nan), layers["body"]
    )
    found = jax.jit(model.apply)(variables, TOKENS)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.conformance
def test_a_cache_keeps_the_decisions():
    model = make(STACK)
    variables = variables_of(model, (9, 0, 0.1, 0))
    with watching() as found:
        wanted = model.apply(variables, TOKENS)
    assert 0 < np.sum(found.times) < 8
    state, parts = model.init_state(2, 6), []
    for first, last in ((0, 4), (4, 5), (5, 6)):
        x, state = model.apply(
            *(variables, TOKENS[:, first:last]),
            positions=np.broadcast_to(np.arange(first, last), (2, last - first)),
            state=state,
            method="hidden",
        )
        parts.append(model.apply(variables, x, method="logits"))
    np.testing.assert_allclose(jnp.concatenate(parts, 1), wanted, atol=1e-5)


@pytest.mark.conformance
def test_training_mixes_each_layer_with_its_input():
    model = make(STACK)
    variables = variables_of(model)

    def run(params):
        logits, written = model.apply(
            {**variables, "params": params}, TOKENS, mutable=[BATCH_STATS, LOSSES]
        )
        return jnp.sum(jnp.square(logits)) + total_loss(written), (logits, written)

    slopes, (logits, written) = jax.grad(run, has_aux=True)(variables["params"])
    for name in ("router_in", "router_gain", "router_bias"):
        assert np.all(np.any(slopes["layers"][name].reshape(4, -1) != 0, axis=1))
    # By hand: the share of each row, by the statistics of the prompt's tokens.
    params = variables["params"]
    layers, h = params["layers"], params["embedding"][TOKENS]
    shares = []
    for layer in range(4):
        score = np.asarray(h)[:, :4] @ layers["router_in"][layer]
        score = (score - score.mean()) / np.sqrt(score.var() + 1e-5)
        share = np.mean(1 / (1 + np.exp(-score - layers["router_bias"][layer])), axis=1)
        after = _layer(variables, layer, h)
        h = share[:, None, None] * after + (1 - share[:, None, None]) * h
        shares.append(share)
    np.testing.assert_allclose(
        model.apply(params_of(variables), h, method="read_out"), logits, atol=1e-4
    )
    share = np.array(shares)
    cost = 0.2 * np.mean(share * (1 - share)) + 0.3 * abs(np.mean(share) - 0.5)
    np.testing.assert_allclose(total_loss(written), cost, rtol=1e-4)
    running = written[BATCH_STATS]["layers"]["router_variance"]
    assert np.all(running != 1)
    # Repairing, it decides as it is evaluated, and keeps its statistics.
    repaired, kept = make(STACK[:-1] + ", is_soft=False)").apply(
        variables, TOKENS, mutable=[BATCH_STATS, LOSSES]
    )
    np.testing.assert_array_equal(repaired, model.apply(variables, TOKENS))
    assert np.all(kept[BATCH_STATS]["layers"]["router_variance"] == 1)


def params_of(variables):
    return {"params": variables["params"], BATCH_STATS: variables[BATCH_STATS]}


def _layer(variables, layer, h):
    """One layer of the model, applied to a stream."""
    uniform = make(f"path(layers=({layer},))")

    def run(module, x):
        positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
        return module.layers(x, positions=positions)[0]

    return uniform.apply(base_of(variables), h, method=run)
