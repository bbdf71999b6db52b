"""Trained models tied to a cycle, factors added and merged."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import count_parameters, map_named, named_leaves, nested_leaves
from reslab.models.cost import forward_flops_per_token
from reslab.observe.flops import count_flops
from reslab.transforms import _lora, add_lora, choose_task, merge_lora, to_recursive
from tests.transforms import conftest
from tests.transforms.conftest import (
    TOKENS,
    converted,
    drawn,
    logits,
    model_of,
)

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
BASE = {
    "model.features": 8,
    "model.depth": 4,
    "model.mixer": "attention(heads=2)",
    "model.ffn": "gelu(hidden=6)",
}


flat = functools.partial(conftest.flat, BASE)


def test_factors_and_means_are_the_recorded_ones():
    with np.load(GOLDENS / "relaxed_recursive.npz") as stored:
        file = {k.removeprefix("dev_"): stored[k] for k in stored}
    for name in ("q", "down"):
        for k in range(3):
            kernels = [file[f"W_{name}_{layer}"].T for layer in (k, k + 3)]
            shared = np.mean(kernels, axis=0)
            np.testing.assert_allclose(shared, file[f"shared_{name}_{k}"].T, 1e-12)
            for layer, kernel in zip((k, k + 3), kernels, strict=True):
                pair = _lora.factors(f"{name}/kernel", kernel - shared, 3, None)
                wanted = file[f"BA_{name}_{layer}"].T
                np.testing.assert_allclose(_lora.product(*pair), wanted, atol=1e-12)


@pytest.mark.parametrize(
    "start",
    [
        "average",
        *(
            pytest.param(start, marks=pytest.mark.conformance)
            for start in ("stepwise", "lower")
        ),
    ],
)
def test_a_full_rank_keeps_the_logits_and_none_ties_the_layers(start):
    fields = flat()
    # Norms are shared, whatever the rank.
    params = map_named(
        lambda name, leaf: 0 * leaf if name.endswith("gain") else leaf, drawn(fields)
    )
    wanted = logits(fields, params)
    whole, own = converted(to_recursive, fields, params, unique=2, rank=8, start=start)
    np.testing.assert_allclose(logits(whole, own), wanted, atol=2e-5)
    back, again = converted(merge_lora, whole, own)
    assert back["model.stack"] == "uniform"
    for name, leaf in named_leaves(params).items():
        if name.endswith("/kernel"):
            np.testing.assert_allclose(named_leaves(again)[name], leaf, atol=1e-5)
    tied, few = converted(to_recursive, fields, params, unique=2, start=start)
    assert tied["model.stack"] == "recursive(unique=2)"
    body = named_leaves(few)["layers/body/segment_0/block_0/ffn/up/kernel"]
    old = named_leaves(params)["layers/body/segment_0/block_0/ffn/up/kernel"]
    chosen = {
        "average": [(old[0] + old[2]) / 2, (old[1] + old[3]) / 2],
        "stepwise": [old[0], old[3]],
        "lower": [old[0], old[1]],
    }
    np.testing.assert_allclose(body, chosen[start], atol=1e-6)


def test_as_many_layers_as_before_are_the_same_model():
    fields = flat()
    params = drawn(fields)
    same, own = converted(to_recursive, fields, params, unique=4)
    np.testing.assert_array_equal(logits(same, own), logits(fields, params))
    rank, more = converted(to_recursive, fields, params, unique=4, rank=1)
    np.testing.assert_array_equal(logits(rank, more), logits(fields, params))


def test_a_rank_between_is_nearer_than_none():
    fields = flat()
    params = drawn(fields)
    kernel = "layers/body/segment_0/block_0/ffn/up/kernel"
    errors = []
    for rank in (1, 3, 6):
        tied, own = converted(to_recursive, fields, params, unique=2, rank=rank)
        _, back = converted(merge_lora, tied, own)
        change = named_leaves(back)[kernel] - named_leaves(params)[kernel]
        errors.append(np.linalg.norm(change))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4
    assert count_parameters(own) > count_parameters(params) / 2


def test_merging_keeps_the_logits_and_can_be_undone():
    fields = flat()
    params = drawn(fields)
    _, changes = add_lora.build({"params": params}, fields, rank=2, alpha=1.0)
    fields = fields | changes
    assert fields["model.linear"] == "lora(rank=2, alpha=1.0)"
    trained = drawn(fields)
    wanted = logits(fields, trained)
    merged, own = converted(merge_lora, fields, trained)
    assert merged["model.linear"] == "dense"
    np.testing.assert_allclose(logits(merged, own), wanted, atol=2e-5)
    made, taken = _lora.merge(trained, 0.5)
    back = _lora.unmerge(made, taken, 0.5)
    assert jax.tree.structure(back) == jax.tree.structure(trained)
    for name, leaf in named_leaves(trained).items():
        np.testing.assert_allclose(named_leaves(back)[name], leaf, atol=1e-6)


def test_tasks_share_a_run_and_nothing_else():
    fields = flat()
    _, changes = add_lora.build({}, fields, rank=2, tasks=("code", "prose"))
    fields = fields | changes
    assert fields["model.linear"] == "lora(rank=2, tasks=('code', 'prose'))"
    params = drawn(fields)
    code, prose = (
        converted(choose_task, fields, params, task=task)[0]
        for task in ("code", "prose")
    )
    wanted = {name: logits(f, params) for name, f in (("c", code), ("p", prose))}
    assert np.max(np.abs(wanted["c"] - wanted["p"])) > 0.01
    np.testing.assert_array_equal(logits(fields, params), wanted["c"])
    by_number = fields | {"model.linear": "lora(rank=2, tasks=('a', 'prose'), task=1)"}
    renamed = {k.replace("code_", "a_"): v for k, v in named_leaves(params).items()}
    found = logits(by_number, nested_leaves(renamed))
    np.testing.assert_array_equal(found, wanted["p"])
    # Each alone is the model with its factors alone, and merges into dense kernels.
    merged, own = converted(merge_lora, prose, params)
    assert merged["model.linear"] == "dense"
    np.testing.assert_allclose(logits(merged, own), wanted["p"], atol=2e-5)
    made, taken = _lora.merge(params, 1.0, "prose")
    assert all("/prose_task_" in name for name in taken)
    back = _lora.unmerge(made, taken, 1.0)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for name, leaf in named_leaves(params).items():
        np.testing.assert_allclose(named_leaves(back)[name], leaf, atol=1e-6)
    none, _ = converted(choose_task, fields, params, task="")
    dense = {k: v for k, v in named_leaves(params).items() if "_task_" not in k}
    np.testing.assert_array_equal(
        logits(none, params), logits(flat(), nested_leaves(dense))
    )
    assert code["optim.groups"][0][0] == "/code_task_"
    _, more = add_lora.build({}, code, tasks=("third",))
    assert "tasks=('code', 'prose', 'third')" in more["model.linear"]


def test_tasks_that_are_not_applied_cost_nothing():
    fields = flat(**{"model.linear": "lora(rank=2, tasks=('a', 'b', 'c'), task='b')"})
    model = model_of(fields)
    variables = {"params": drawn(fields)}
    said = forward_flops_per_token(model, variables["params"], TOKENS.shape[1])
    assert count_flops(model.apply, variables, TOKENS) == TOKENS.size * said


@pytest.mark.parametrize(
    ("transform", "changes", "options", "message"),
    [
        (to_recursive, {}, {"unique": 3}, r"unique: expected a divisor of .*\(4\)"),
        (
            to_recursive,
            {"model.stack": "looped"},
            {},
            "stack: expected 'uniform'",
        ),
        (to_recursive, {"model.linear": "noble"}, {}, "model.linear: expected 'dense'"),
        (to_recursive, {}, {"unique": 0}, "unique: expected at least 1"),
        (add_lora, {"model.linear": "noble"}, {}, "model.linear: expected 'dense'"),
        (add_lora, {}, {"rank": 0}, "rank: expected at least 1"),
        (add_lora, {"model.linear": "lora"}, {"tasks": ("a",)}, "expected 'dense'"),
        (choose_task, {"model.linear": "lora"}, {"task": "a"}, "lora with tasks"),
        (
            choose_task,
            {"model.linear": "lora(tasks=('a', 'b'))"},
            {"task": "c"},
            "task: expected one of a, b, or its number; got 'c'",
        ),
        (
            merge_lora,
            {"model.linear": "lora(tasks=('a', 'b'), task='')"},
            {},
            "expected a chosen task",
        ),
        (merge_lora, {}, {}, "model.linear: expected lora; got 'dense'"),
        (
            merge_lora,
            {"model.linear": "lora(rank=1, depths=2)"},
            {},
            "one pair for each kernel",
        ),
    ],
)
def test_refuses_in_one_line(transform, changes, options, message):
    fields = flat(**changes)
    with pytest.raises(ReslabError, match=message):
        transform.build({"params": drawn(fields)}, fields, **options)
