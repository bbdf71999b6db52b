"""Experts: the authors' numbers, identities, and what balances them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES
from reslab.core.model_state import BATCH_STATS
from reslab.core.trees import unbox
from reslab.nn.ffns._routing import balance, choose, load, places
from reslab.nn.ffns.experts import Experts
from reslab.nn.ffns.swiglu import SwiGLU

WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def _as_ours(data, kind):
    """Parameters, or their gradients, of the authors' block under our names."""
    at = {key.removeprefix(kind): v for key, v in data.items() if key.startswith(kind)}
    both = at["experts.gate_up_proj"].swapaxes(1, 2)
    gate, up = np.split(both, 2, axis=2)
    several = "shared_experts.up_proj.weight" in at
    shared = "shared_experts" if several else "shared_expert"
    found = {
        "gate": gate,
        "up": up,
        "down": at["experts.down_proj"].swapaxes(1, 2),
    }
    made = {name: {"kernels": v.astype(np.float64)} for name, v in found.items()}
    made["router"] = {"kernel": at["gate.weight"].T}
    made["shared"] = {
        name: {"kernel": at[f"{shared}.{name}_proj.weight"].T}
        for name in ("gate", "up", "down")
    }
    if "shared_expert_gate.weight" in at:
        made["shared_gate"] = {"kernel": at["shared_expert_gate.weight"].T}
    return made


def test_experts_of_another_form_and_scores_of_softplus(x64):
    x = np.random.default_rng(0).normal(size=(2, 5, 6))
    module = Experts(
        experts=4,
        hidden=8,
        shared_hidden=3,
        form="situ_glu(gate_bound=0.5)",
        scores="sqrt_softplus",
        **WIDE,
    )
    params = unbox(module.init(jax.random.key(0), x)["params"])
    y = jax.jit(module.apply)({"params": params}, x)

    def answer(x, gate, up, down):
        g, u = x @ gate, x @ up
        g = 0.5 * np.tanh(g / 0.5) / (1 + np.exp(-g))
        return (g * 25 * np.tanh(u / 25)) @ down

    p = np.sqrt(np.log1p(np.exp(x @ np.asarray(params["router"]["kernel"]))))
    p *= p >= np.sort(p, axis=-1)[..., -2:-1]
    p /= p.sum(axis=-1, keepdims=True)
    names = "gate", "up", "down"
    wanted = answer(x, *(np.asarray(params["shared"][n]["kernel"]) for n in names))
    for expert in range(4):
        kernels = (np.asarray(params[n]["kernels"][expert]) for n in names)
        wanted = wanted + p[..., expert, None] * answer(x, *kernels)
    np.testing.assert_allclose(y, wanted, rtol=1e-10, atol=1e-12)


def test_refuses_a_form_without_a_gate():
    with pytest.raises(ReslabError, match="form: expected a layer that gates one half"):
        Experts(form="gelu").init(jax.random.key(0), jnp.ones((1, 2, 8)))


@pytest.mark.parametrize("capacity", [0.0, 100.0])
@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
def test_the_layer_is_that_of_transformers(golden, x64, name, capacity):
    prefix = f"{name}_"
    data = {
        key.removeprefix(prefix): value
        for key, value in golden("experts").items()
        if key.startswith(prefix)
    }
    fields = {
        "sigmoid": {
            "experts": 8,
            "chosen": 3,
            "groups": 4,
            "chosen_groups": 2,
            "scale": 2.5,
            "scores": "sigmoid",
            "balance": "bias",
            "shared_hidden": 6,
        },
        "softmax": {
            "experts": 5,
            "chosen": 2,
            "shared_hidden": 10,
            "is_shared_gated": True,
        },
    }[name]
    layer = Experts(hidden=6, capacity=capacity, **fields, **WIDE)
    stats = {}
    if "b_gate.e_score_correction_bias" in data:
        stats = {BATCH_STATS: {"bias": data["b_gate.e_score_correction_bias"]}}

    def loss(params, x):
        y = layer.apply({"params": params, **stats}, x)
        return jnp.sum(y * data["cot"]), y

    params = _as_ours(data, "p_")
    slopes, y = jax.grad(loss, (0, 1), has_aux=True)(params, data["x"])
    tolerance = 1e-5  # Their router is float32.
    _assert_close(y, data["out"], tolerance)
    _assert_close(slopes[1], data["grad_x"], tolerance)
    for found, wanted in zip(
        jax.tree.leaves(slopes[0]), jax.tree.leaves(_as_ours(data, "g_")), strict=True
    ):
        _assert_close(found, wanted, tolerance)


def _made(layer, x):
    return unbox(layer.init(jax.random.key(1), x))


def _assert_close(found, wanted, tolerance=1e-6):
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (3, 10, 8))


def test_one_expert_is_the_dense_layer(x):
    layer = Experts(experts=1, chosen=1, hidden=12)
    params = _made(layer, x)["params"]
    dense = {
        name: {"kernel": params[name]["kernels"][0]} for name in ("gate", "up", "down")
    }
    _assert_close(
        layer.apply({"params": params}, x),
        SwiGLU(hidden=12).apply({"params": dense}, x),
    )


def test_no_capacity_is_an_unlimited_one(x):
    few = Experts(experts=6, chosen=2, hidden=8)
    variables = _made(few, x)
    many = Experts(experts=6, chosen=2, hidden=8, capacity=100.0)
    _assert_close(few.apply(variables, x), many.apply(variables, x))


def test_the_order_of_experts_changes_nothing(x):
    layer = Experts(experts=6, chosen=2, hidden=8)
    params = _made(layer, x)["params"]
    order = np.random.default_rng(0).permutation(6)
    moved = {
        n: {"kernels": p["kernels"][order]} for n, p in params.items() if n != "router"
    }
    moved["router"] = {"kernel": params["router"]["kernel"][:, order]}
    _assert_close(layer.apply({"params": params}, x), layer.apply({"params": moved}, x))


def test_it_is_the_sum_over_experts_in_a_loop(x):
    layer = Experts(experts=4, chosen=2, hidden=8, is_renormalized=False, scale=1.5)
    params = _made(layer, x)["params"]
    p = jax.nn.softmax(x @ params["router"]["kernel"])
    wanted = np.zeros_like(x)
    for row, token in np.ndindex(3, 10):
        for e in np.argsort(p[row, token])[-2:]:
            h = x[row, token]
            gate, up, down = (params[n]["kernels"][e] for n in ("gate", "up", "down"))
            answer = (jax.nn.silu(h @ gate) * (h @ up)) @ down
            wanted[row, token] += 1.5 * p[row, token, e] * answer
    _assert_close(layer.apply({"params": params}, x), wanted, 1e-5)


def test_capacity_drops_later_choices(x):
    layer = Experts(experts=4, chosen=1, hidden=8, capacity=0.4)
    variables = _made(layer, x)
    y = layer.apply(variables, x)
    logits = x @ variables["params"]["router"]["kernel"]
    expert = np.argmax(logits, -1)
    for row in range(3):
        taken = np.zeros(4, int)
        for token in range(10):
            # One choice of each expert: ceil(0.4 * 10 / 4).
            is_kept = taken[expert[row, token]] < 1
            assert bool(np.any(np.asarray(y[row, token]) != 0)) == is_kept
            taken[expert[row, token]] += 1


def test_padding_takes_no_capacity_and_no_share():
    experts = jnp.asarray([[[0], [0], [1], [0]]])
    mask = jnp.asarray([[1.0, 0.0, 1.0, 1.0]])
    assert places(experts, 2, mask)[0, :, 0].tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(load(experts, 2, mask), [2 / 3, 1 / 3])


def test_the_balance_loss_is_least_at_equal_shares():
    tokens = jnp.ones((4,))
    even = jax.nn.one_hot(jnp.arange(4), 4)
    np.testing.assert_allclose(
        balance(even, load(jnp.arange(4)[:, None], 4, tokens), tokens), 1.0
    )
    one = jax.nn.one_hot(jnp.zeros(4, int), 4)
    share = load(jnp.zeros((4, 1), int), 4, tokens)
    np.testing.assert_allclose(balance(one, share, tokens), 4.0)


def test_losses_reach_the_objective(x):
    layer = Experts(rate=0.1, z_loss=0.01)
    variables = _made(layer, x)
    _, written = layer.apply(variables, x, mutable=[LOSSES])
    assert set(written[LOSSES]) == {"balance", "router_z_loss"}
    assert 0.09 < written[LOSSES]["balance"][0] < 0.5
    _, written = Experts(balance="none").apply(variables, x, mutable=[LOSSES])
    assert not written.get(LOSSES)


def test_the_bias_follows_the_load_while_training(x):
    layer = Experts(balance="bias", rate=0.5, scores="sigmoid")
    variables = _made(layer, x)
    variables["params"]["router"]["kernel"] = jnp.zeros((8, 8)).at[0, 0].set(5.0)
    x = jnp.abs(x)  # All tokens ask the first expert.
    _, written = layer.apply(variables, x, mutable=[BATCH_STATS])
    bias = written[BATCH_STATS]["bias"]
    assert bias[0] == -0.5 and (bias[2:] == 0.5).all()
    # Not when evaluated, and not by what only the weights change.
    np.testing.assert_array_equal(variables[BATCH_STATS]["bias"], 0.0)
    scores = jnp.asarray([[0.9, 0.5, 0.4]])
    choice = choose(
        scores, 1, bias=jnp.asarray([-1.0, 0.0, 0.0]), is_renormalized=False
    )
    assert (int(choice.experts[0, 0]), float(choice.weights[0, 0])) == (1, 0.5)


def test_groups_limit_the_choice():
    scores = jnp.asarray([[0.9, 0.0, 0.5, 0.6]])
    choice = choose(scores, 2, groups=2, chosen_groups=1)
    assert sorted(choice.experts[0].tolist()) == [2, 3]  # 0.5 + 0.6 against 0.9.


def test_jitter_is_for_training_alone(x):
    layer = Experts(jitter=0.3, chosen=1, experts=16)
    variables = _made(layer, x)
    plain = Experts(chosen=1, experts=16).apply(variables, x)
    np.testing.assert_array_equal(layer.apply(variables, x), plain)
    drawn = layer.apply(variables, x, rngs={"dropout": jax.random.key(5)})
    assert np.any(np.asarray(drawn) != np.asarray(plain))


def test_experts_may_act_in_a_narrower_space(x):
    layer = Experts(latent=4, hidden=6, experts=3, chosen=2)
    shapes = {
        "/".join(path): leaf.shape
        for path, leaf in (
            (tuple(k.key for k in path), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                _made(layer, x)["params"]
            )
        )
    }
    assert shapes["gate/kernels"] == (3, 4, 6) and shapes["down/kernels"] == (3, 6, 4)
    assert shapes["latent_down/kernel"] == (8, 4) and shapes["latent_up/kernel"] == (
        4,
        8,
    )


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"chosen": 9}, "chosen: expected at most 8; got 9"),
        ({"groups": 3}, "groups: expected a divisor of the 8 experts; got 3"),
        ({"chosen_groups": 2}, "at most 1, the groups"),
        ({"groups": 8, "chosen": 3, "chosen_groups": 2}, "hold the 3 chosen experts"),
        ({"linear": "noble"}, "linear: expected 'dense'"),
        ({"capacity": -1.0}, "capacity: expected at least 0"),
        ({"experts": 0}, "experts: expected at least 1"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(x, fields, words):
    with pytest.raises(ReslabError, match=words):
        Experts(**fields).init(jax.random.key(0), x)
