"""Optimizers around another: heavy_tail, normalize_and_project, lisa, IST, tract."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.layout import Layout, read
from reslab.ops.spectra import correlated_tail, eigenvalues, tail_exponents
from reslab.optim import heavy_tail, importance_sparse, lisa, normalize_and_project
from reslab.optim.base.group import parse_groups
from reslab.optim.base.wrapping import unwrapped
from reslab.optim.groups import grouped
from reslab.optim.tract import build as tract
from reslab.optim.tract import gram, patch_gram, preconditioned

DEPTH = 4
AXES = {
    "embedding": (("vocab", "embed"), (5, 3)),
    "kernel": (("layers", "mlp", "embed"), (DEPTH, 4, 3)),
    "gain": (("layers", "embed"), (DEPTH, 3)),
}
LAYOUTS = {
    k: read(n, range(DEPTH) if n[0] == "layers" else ()) for k, (n, _) in AXES.items()
}
PARAMS = {
    key: jax.random.normal(jax.random.key(index), shape)
    for index, (key, (_, shape)) in enumerate(AXES.items())
}


def whole(method, groups=(), steps=10, **options):
    return grouped(
        method,
        PARAMS,
        parse_groups(groups),
        learning_rate=0.1,
        schedule=lambda _: 1.0,
        weight_decay=0.0,
        layouts=LAYOUTS,
        steps=steps,
        **options,
    )


def run(made, steps, gradient=PARAMS, **extra):
    """The parameters after each step."""
    params, path = PARAMS, [PARAMS]
    state = made.init(params)

    @jax.jit
    def step(params, state):
        updates, state = made.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        path.append(params)
    return path, state


# Tails.


def matrices(golden):
    arrays = golden("llr")
    names = json.loads(str(arrays["names_json"]))["dev"]
    return (
        arrays,
        names,
        [jnp.asarray(arrays[f"dev_W/{n}"], jnp.float32) for n in names],
    )


@pytest.mark.parametrize(
    "estimator, part, key",
    [
        ("hill", 2, "median_x2"),
        ("hill", 4, "median_x4"),
        ("fixed_finger", 2, "fix-finger_x2"),
        ("goodness_of_fit", 2, "goodness-of-fit_x2"),
    ],
)
def test_exponents_are_the_authors(golden, estimator, part, key):
    arrays, _, given = matrices(golden)
    for matrix, wanted in zip(given, arrays[f"dev_{key}_alpha_test"], strict=True):
        found = tail_exponents(eigenvalues(matrix), estimator, part)
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("count", [51, 52, 53, 7])
def test_hill_begins_at_half_the_number_rounded_down(count):
    """By the equation, in float64: the authors' matrices have even numbers alone."""
    values = np.sort(np.random.default_rng(count).pareto(2.0, count) + 1.0)
    begin = int(count / 2)
    total = np.sum(np.log(values[begin:] / values[begin]))
    wanted = 1 + (count - begin) / total
    found = tail_exponents(jnp.asarray(values, jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    if count % 2:  # Rounded up it is another number.
        total = np.sum(np.log(values[begin + 1 :] / values[begin + 1]))
        assert abs(1 + (count - begin - 1) / total - wanted) > 1e-3


def test_correlated_tail_is_weightwatchers(golden):
    arrays, names, given = matrices(golden)
    for name, matrix in zip(names, given, strict=True):
        found = correlated_tail(eigenvalues(matrix))
        np.testing.assert_array_equal(found, arrays[f"dev_detx_rescaled/{name}"])


def test_exponent_of_a_power_law():
    points = (np.arange(4000) + 0.5) / 4000
    values = jnp.asarray((1 - points) ** (-1 / 2.0), jnp.float32)
    np.testing.assert_allclose(tail_exponents(values), 3.0, atol=0.1)
    np.testing.assert_allclose(
        tail_exponents(7 * values), tail_exponents(values), rtol=1e-4
    )


@pytest.mark.parametrize(
    "key, kind, low, high",
    [
        ("tb_linear_map_pos_1_5", "linear", 1, 5),
        ("tb_linear_map_pos_0.5_1.5", "linear", 0.5, 1.5),
        ("tb_sqrt_pos_1_5", "sqrt", 1, 5),
        ("tb_log2_pos_1_5", "log2", 1, 5),
        ("sigmoid_pos_1_5", "sigmoid", 1, 5),
        ("tb_linear_map_neg_1_5", "linear", 1, 5),
        ("tb_sqrt_neg_1_5", "sqrt", 1, 5),
        ("tb_step_neg_0.5_1.5", "step", 0.5, 1.5),
    ],
)
def test_rates_are_the_authors(golden, key, kind, low, high):
    arrays, names, given = matrices(golden)
    kinds = {"model.embed_tokens": "embedding", "lm_head": "head"}
    layouts = {n: Layout(kinds.get(n, "matrix"), (), (0,), (1,)) for n in names}
    # Ties of ranks fall in the order of the tree: the authors' order of modules.
    names = [f"{index} {name}" for index, name in enumerate(names)]
    layouts = {f"{n} {name}": layouts[name] for n, name in enumerate(layouts)}
    params = dict(zip(names, given, strict=True))
    found = heavy_tail.ratios_of(
        params, layouts, kind=kind, low=low, high=high, is_inverted="_neg_" in key
    )
    rates = [1e-3 * float(found[n].squeeze()) for n in names]
    np.testing.assert_allclose(rates, arrays[f"dev_lr/{key}"], rtol=2e-5)


def test_heavy_tail_scales_layers_between_its_bounds():
    spec = "heavy_tail(inner='sgd(momentum=0.0)', every=2, until=1.0, blend=0, least=2)"
    path, state = run(whole(spec), 1)
    ratio = (path[0]["kernel"] - path[1]["kernel"]) / (0.1 * PARAMS["kernel"])
    np.testing.assert_allclose(ratio, state.ratios["kernel"] + 0 * ratio, rtol=1e-4)
    assert np.min(state.ratios["kernel"]) >= 1 and np.max(state.ratios["kernel"]) == 5
    np.testing.assert_allclose(path[1]["gain"], 0.9 * PARAMS["gain"], rtol=1e-6)


# Norms that stay.


def test_projection_is_the_third_partys(replay, turned):
    leaves = ("l1.weight", "l2.weight")
    made = normalize_and_project.build(0.1, 0.0, turned(leaves), "sgd(momentum=0.0)")
    tag = "sgd0.1_then_nap"
    replay("nap_plasticine", tag, made, leaves=leaves, steps=5, atol=1e-5)


def test_every_layer_keeps_its_norm_whatever_the_scaling():
    groups = [(".", {"scaling": "layer_decay(decay=0.5)"})]
    path, _ = run(whole("normalize_and_project(inner='adamw')", groups), 3)
    sizes = [np.linalg.norm(p["kernel"].reshape(DEPTH, -1), axis=1) for p in path]
    np.testing.assert_allclose(sizes[-1], sizes[0], rtol=1e-6)
    assert not np.allclose(path[-1]["kernel"], path[0]["kernel"], atol=1e-3)
    assert np.linalg.norm(path[-1]["gain"]) != np.linalg.norm(path[0]["gain"])


# Layers that are drawn.


def moved(before, after, key):
    return np.any(np.asarray(before[key] != after[key]).reshape(DEPTH, -1), axis=1)


def test_lisa_moves_as_many_layers_as_it_says():
    path, _ = run(whole("lisa(inner='adamw', active=2, every=3)"), 12)
    chosen = []
    for step, (before, after) in enumerate(itertools.pairwise(path)):
        layers = moved(before, after, "kernel")
        assert layers.sum() == 2
        np.testing.assert_array_equal(layers, moved(before, after, "gain"))
        assert np.all(before["embedding"] != after["embedding"])
        if step % 3:
            np.testing.assert_array_equal(layers, chosen[-1])
        chosen.append(layers)
    assert len({tuple(layers) for layers in chosen}) > 1


def test_layers_that_rest_keep_their_state():
    made = whole("lisa(inner='adamw', active=1)")
    _, state = run(made, 1)
    layers = np.asarray(lisa.active_layers(jnp.zeros((), int), DEPTH, 1, 20, 0))
    (mu,) = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "mu" in str(path) and "kernel" in str(path)
    ]
    np.testing.assert_array_equal(np.any(mu.reshape(DEPTH, -1) != 0, axis=1), layers)


def test_scores_are_the_authors(golden):
    arrays = golden("ist")
    scores = jnp.zeros(12, jnp.float32)
    for index in range(6):
        scores = importance_sparse.learned_scores(
            scores,
            jnp.asarray(arrays["dev_suppressed_masks"][index]),
            jnp.asarray(arrays["dev_losses"][index], jnp.float32),
        )
        wanted = arrays["dev_scores_after_each_update"][index]
        np.testing.assert_allclose(scores, wanted, atol=1e-6)


def test_important_layers_are_found():
    """The loss depends on the last layer alone: its score becomes the lowest."""

    def loss(params):
        return jnp.square(jnp.sum(params["kernel"][3]) - jnp.sum(PARAMS["kernel"][3]))

    made = whole(
        "importance_sparse(inner='sgd(momentum=0.0)', every=1, share=0.3, trials=6)"
    )
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    _, state = run(made, 12, gradient=zero, value_fn=loss)
    assert int(jnp.argmin(state.scores)) == 3
    path, _ = run(made, 3, value_fn=loss)
    assert moved(path[0], path[1], "kernel").sum() == 1


# The first layer.


@pytest.mark.parametrize("case", ["lin_b_ge_n", "lin_b_lt_n", "lin_lam1"])
def test_linear_gradients_are_the_authors(golden, case):
    arrays = {k: v for k, v in golden("tract").items() if v.dtype.kind == "f"}
    x, plain, wanted = (
        jnp.asarray(arrays[f"dev_{case}/{key}"], jnp.float32)
        for key in ("x", "plain_grad_W", "grad_W")
    )
    damping = float(arrays[f"dev_{case}/lambda"])
    found = preconditioned(plain.T, gram(x), damping).T
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["conv3s1p1", "patch4s4", "patch4s4_small"])
def test_convolution_gradients_are_the_authors(golden, case):
    arrays = {k: v for k, v in golden("tract").items() if v.dtype.kind == "f"}
    x, plain, wanted = (
        jnp.asarray(arrays[f"dev_{case}/{key}"], jnp.float32)
        for key in ("x_NCHW", "plain_grad_W", "grad_W")
    )
    damping, stride, pad = arrays[f"dev_{case}/lambda_stride_pad"]
    window, stride, pad = plain.shape[2:], int(stride), int(pad)
    covariance = patch_gram(
        x.transpose(0, 2, 3, 1), window, (stride, stride), [(pad, pad)] * 2
    )
    kernel = plain.transpose(2, 3, 1, 0)
    made = tract(1.0, inner="sgd(momentum=0.0)", damping=float(damping))
    updates, _ = made.update(
        {"stem": {"kernel": kernel}},
        made.init({"stem": {"kernel": kernel}}),
        {"stem": {"kernel": kernel}},
        grams={"stem/kernel": covariance},
    )
    found = -updates["stem"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_embedding_is_a_linear_layer_of_one_hot_inputs():
    tokens = jnp.asarray([[0, 1, 1], [3, 1, 0]])
    one_hot = jax.nn.one_hot(tokens, 5)
    wanted = preconditioned(PARAMS["embedding"], gram(one_hot), 0.1)
    path, _ = run(whole("tract(inner='sgd(momentum=0.0)')"), 1, tokens=tokens)
    moves = (path[0]["embedding"] - path[1]["embedding"]) / 0.1
    np.testing.assert_allclose(moves, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("lisa(every=0)", "every: expected at least 1; got 0"),
        ("heavy_tail(every=0)", "every: expected at least 1; got 0"),
        ("heavy_tail(estimator='hil')", "'hill'"),
        ("normalize_and_project(every=0)", "at least 1; got 0"),
        ("importance_sparse(share=0.0)", "above 0 and at most 1"),
        ("tract(damping=0.0)", "above 0"),
        ("lisa(inner='adam')", "unknown optimizers 'adam'"),
    ],
)
def test_mistakes(spec, words):
    for make in (whole, lambda s: registry.make("optimizers", s, learning_rate=0.1)):
        with pytest.raises(ReslabError) as caught:
            make(spec)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_whole_numbers_are_floats_where_a_wrapper_wants_floats():
    # As an int its square would not fit into 32 bits.
    typed = registry.typed_arguments("optimizers", "noise_adaptive_muon(alpha=1000000)")
    assert type(typed["alpha"]) is float
    made = registry.make(
        "optimizers", "noise_adaptive_muon(alpha=1000000)", learning_rate=0.1
    )
    params = {"kernel": jnp.ones((4, 4))}
    made.update(params, made.init(params), params)
    _, (wrap,) = unwrapped("noise_adaptive_muon(alpha=1000000)")
    whole = wrap(optax.sgd(0.1), layouts=None, steps=1)
    whole.update(params, whole.init(params), params)
