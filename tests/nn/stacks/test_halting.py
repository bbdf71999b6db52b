"""Halting: recorded distributions and states, and what evaluation makes of them."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES, total_loss
from reslab.core.parameters import parameter
from reslab.core.randomness import DROPOUT
from reslab.core.surroundings import Context
from reslab.core.trees import named_leaves, nested_leaves
from reslab.nn.ffns.gelu import build as Gelu
from reslab.nn.stacks import _halting
from reslab.train.generate import generate
from tests.nn.stacks import conftest
from tests.nn.stacks.conftest import TOKENS

# Place of the token after six.
AT = np.full((2, 1), 6)
GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"


def recorded(name):
    with np.load(GOLDENS / f"{name}.npz") as stored:
        return {k.removeprefix("dev_"): stored[k] for k in stored}


def close(actual, expected, tolerance=1e-7):
    size = np.max(np.abs(expected))
    np.testing.assert_allclose(actual, expected, atol=tolerance * size)


class Transition(nn.Module):
    """The recorded block: s + relu(s W1) W2."""

    writes_shared = ()

    @nn.compact
    def __call__(self, stream, shared, *, layer, positions, segments=None, state=None):
        shapes = {"W1": (8, 16), "W2": (16, 8)}
        w1, w2 = (
            parameter(self, name, nn.initializers.ones, s, (None, None), jnp.float64)
            for name, s in shapes.items()
        )
        return stream + jax.nn.relu(stream @ w1) @ w2, shared, state


@pytest.mark.parametrize("form", ["basic", "accumulated"])
def test_act_is_the_recorded_one(form, x64):
    file = recorded("ut_act")
    stack = registry.make(
        "stacks",
        f"act(loops=6, form={form!r}, cost=1.0)",
        blocks=(Transition,),
        depth=1,
        context=Context(dtype=jnp.float64, param_dtype=jnp.float64),
    )

    def params(kind, step):
        block = {n: file[f"{kind}_{n}"][None] for n in ("W1", "W2")}
        return {
            "body": {"segment_0": {"block_0": block}},
            "halt_weight": file[f"{kind}_w_halt"],
            "halt_bias": file[f"{kind}_b_halt"],
            "step_embedding": file[step][:6],
        }

    def loss(params, x):
        (y, _), written = stack.apply(
            {"params": params}, x, positions=np.zeros((2, 5), int), mutable=[LOSSES]
        )
        ponder = total_loss(written)
        cotangents = file[f"cot_{form}_state"], file[f"cot_{form}_ponder_cost"][0]
        return jnp.sum(y * cotangents[0]) + ponder * cotangents[1], (y, ponder)

    given = params("in", "in_step_emb")
    (value, (y, ponder)), (slopes, slope) = jax.value_and_grad(
        loss, (0, 1), has_aux=True
    )(given, file["in_x"])
    close(y, file[f"out_{form}_state"])
    close(ponder, file[f"out_{form}_ponder_cost"][0])
    close(value, file[f"loss_{form}_"])
    close(slope, file[f"grad_{form}_x"])
    wanted = params(f"grad_{form}", f"grad_{form}_step_emb")
    for name, leaf in named_leaves(wanted).items():
        close(named_leaves(slopes)[name], leaf)


def test_ponder_is_the_recorded_one(x64):
    file = recorded("pondernet")
    names = [name.removeprefix("in_") for name in file if name.startswith("in_")]
    rate, passes = float(file["lambda_p"]), int(file["max_steps"])
    cell = {name.removeprefix("gru."): name for name in names if "gru" in name}

    def outputs(given):
        def step(h):
            gates = given["x"] @ given[cell["weight_ih"]].T
            gates = gates + given[cell["bias_ih"]][None]
            own = h @ given[cell["weight_hh"]].T + given[cell["bias_hh"]][None]
            (r, z, n), (hr, hz, hn) = (jnp.split(a, 3, axis=-1) for a in (gates, own))
            z, n = jax.nn.sigmoid(z + hz), jnp.tanh(n + jax.nn.sigmoid(r + hr) * hn)
            return (1 - z) * n + z * h

        hs = [step(jnp.zeros((4, 8)))]
        for _ in range(passes - 1):
            hs.append(step(hs[-1]))
        h = jnp.stack(hs)
        scores = (
            jnp.sum(h * given[f"{name}.weight"][None], axis=-1)
            + given[f"{name}.bias"][None]
            for name in ("lambda_layer", "output_layer")
        )
        score, y = scores
        chances = jax.nn.sigmoid(score)
        p = _halting.halting_distribution(chances)
        expected = _halting.prior("geometric", passes, rate).astype(jnp.float64)
        cost = _halting.divergence(p, expected, "prior_to_p")
        target = file["target"]
        losses = jax.nn.softplus(y) - y * target[None]
        found = {"p": p, "yhat": y, "rec": jnp.mean(jnp.sum(p * losses, axis=0))}
        return {**found, "reg": jnp.mean(cost)}

    def loss(given):
        found = outputs(given)
        return sum(jnp.sum(v * file[f"cot_{k}"]) for k, v in found.items()), found

    given = {name: file[f"in_{name}"] for name in names}
    slopes, found = jax.grad(loss, has_aux=True)(given)
    # The prior is float32 here and there.
    for name, value in found.items():
        close(value, np.squeeze(file[f"out_{name}"]), 3e-7)
    for name, slope in slopes.items():
        close(slope, file[f"grad_{name}"], 3e-7)
    p, palbert = found["p"], float(file["palbert_kl"])
    np.testing.assert_allclose(jnp.sum(p, axis=0), 1.0, rtol=1e-12)
    prior = _halting.prior("geometric", passes, rate)
    paper = jnp.mean(_halting.divergence(p, prior, "p_to_prior"))
    close(paper, file["kl_p_given_geom_paper_direction"], 3e-7)
    assert np.isfinite(palbert)
    for kind, name in (("closed", "geometric_closed"), ("normal", "normal")):
        for other in (0.1, rate):
            mine = np.asarray(_halting.prior(kind, passes, other))
            np.testing.assert_allclose(np.sum(mine), 1.0, rtol=1e-6)
        wanted = file[f"palbert_prior_{name}"]
        errors = [
            np.max(np.abs(_halting.prior(kind, passes, r) - wanted)) for r in (0.1, 0.2)
        ]
        assert min(errors) < 1e-6
    for percent in (25, 50, 75):
        step = _halting.quantile_exit(p, percent / 100)
        np.testing.assert_array_equal(step, file[f"qexit_step_q{percent}"])


def make(stack, **fields):
    return conftest.make(stack, depth=2, **fields)


def start(model):
    return conftest.start(model, 0.5)


@pytest.mark.conformance
def test_training_takes_the_mean_of_the_losses_of_all_passes():
    model = make("ponder(loops=3)")
    variables = start(model)
    rngs = {DROPOUT: jax.random.key(0)}
    apply = {"rngs": rngs, "mutable": [LOSSES], "method": "losses"}
    (found, _), written = model.apply(variables, TOKENS, TOKENS, **apply)
    assert total_loss(written) > 0
    # Quantiles from below the first chance to 1 are the passes one by one.
    each = []
    for loops in (1, 2, 3):
        alone = make(f"ponder(loops={loops}, exit='quantile', quantile=1.0)")
        each.append(alone.apply(variables, TOKENS, TOKENS, method="losses")[0])
    assert np.all(found >= np.min(each, axis=0) - 1e-5)
    assert np.all(found <= np.max(each, axis=0) + 1e-5)
    first = make("ponder(loops=3, exit='quantile', quantile=0.0)")
    nll, _ = first.apply(variables, TOKENS, TOKENS, method="losses")
    np.testing.assert_allclose(nll, each[0], atol=1e-5)
    one = make("ponder(loops=1)")
    (once, _), _ = one.apply(variables, TOKENS, TOKENS, **apply)
    np.testing.assert_allclose(once, each[0], atol=1e-5)


def test_one_pass_is_the_uniform_stack():
    uniform = make("uniform")
    variables = start(uniform)
    wanted = uniform.apply(variables, TOKENS)
    for spec in ("ponder(loops=1)", "act(loops=1, form='accumulated', epsilon=0.999)"):
        model = make(spec.replace("epsilon", "has_step_embedding=False, epsilon"))
        own = start(model)
        own["params"]["layers"]["body"] = variables["params"]["layers"]["body"]
        own["params"] |= {k: v for k, v in variables["params"].items() if k != "layers"}
        np.testing.assert_allclose(model.apply(own, TOKENS), wanted, atol=1e-5)


def test_parameters_do_not_grow_with_passes():
    for name, extra in (("act", 8), ("ponder", 0)):
        few, many = (
            sum(
                leaf.size for leaf in jax.tree.leaves(start(make(f"{name}(loops={n})")))
            )
            for n in (2, 9)
        )
        assert many - few == 7 * extra


class Counted(Gelu):
    """A feed-forward layer that counts how often it is applied."""

    @nn.compact
    def __call__(self, x):
        jax.debug.callback(lambda: COUNTS.append(1))
        return super().__call__(x)


COUNTS = []


def halting(name, bias):
    """A stack that ends early, and variables by which it halts early or late."""
    spec = {
        "act": "act(loops=4, exit='halting')",
        "ponder": "ponder(loops=4, exit='quantile', saves_passes=True)",
        "palbert": "ponder(loops=4, halting='palbert', exit='quantile', "
        "saves_passes=True)",
    }[name]
    model = make(spec)
    leaves = named_leaves(start(model))
    for path in leaves:
        if path.endswith("halt_weight"):
            leaves[path] = 0 * leaves[path]
        if path.endswith("halt_bias"):
            leaves[path] = np.full_like(leaves[path], bias)
    return spec, nested_leaves(leaves)


def decoded(model, variables):
    """Features of one token after a prompt of six, and the state."""
    positions = np.broadcast_to(np.arange(6), TOKENS.shape)
    state = model.init_state(2, 8)
    run = functools.partial(model.apply, variables, method="hidden")
    _, state = run(TOKENS, positions=positions, state=state)
    jax.effects_barrier()
    COUNTS.clear()
    one = jax.jit(lambda state: run(TOKENS[:, :1], positions=AT, state=state))
    found = jax.block_until_ready(one(state))
    jax.effects_barrier()
    return found


@pytest.mark.conformance
@pytest.mark.parametrize(
    "name",
    [
        "act",
        pytest.param("ponder", marks=pytest.mark.conformance),
        pytest.param("palbert", marks=pytest.mark.conformance),
    ],
)
def test_passes_end_when_all_rows_have_halted(name):
    # The chance of a half at every pass ends after two of them.
    for bias, passes in ((20.0, 1), (0.0, 2), (-20.0, 4)):
        spec, variables = halting(name, bias)
        model = make(spec, ffn=functools.partial(Counted, hidden=8))
        exact = make(spec.replace(", exit='halting'", "").replace("True", "False"))
        y, _ = decoded(model, variables)
        # Two layers a pass.
        assert len(COUNTS) == 2 * passes
        wanted, _ = decoded(exact, variables)
        np.testing.assert_allclose(y, wanted, atol=1e-5)


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["act", "ponder"])
def test_generation_may_save_passes(name):
    spec, variables = halting(name, -20.0)
    plain = make(spec.replace(", exit='halting'", "").replace("True", "False"))
    found, wanted = (
        generate(plain, variables, TOKENS, 4, temperature=0, exit=exit)
        for exit in ("halting", "none")
    )
    np.testing.assert_array_equal(found, wanted)


def test_refuses_to_save_passes():
    model = make("ponder(loops=2)")
    with pytest.raises(ReslabError, match="expected exit 'quantile'"):
        generate(model, start(model), TOKENS, 2, exit="halting")
    model = make("act(loops=2)", mixer="attention(heads=2, window=3)")
    with pytest.raises(ReslabError, match="expected mixers with a cache of every tok"):
        generate(model, start(model), TOKENS, 2, exit="halting")
    with pytest.raises(ReslabError, match="exit 'kl': expected a stack that can"):
        generate(model, start(model), TOKENS, 2, exit="kl")
