"""Routers that learn: the authors' logits, the loss, and a run from end to end."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.cli import main
from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves
from reslab.nn.stacks import dr_llm
from reslab.train import loop
from reslab.train.loading import load
from reslab.train.tasks._lessons import effective_weights, focal_loss
from reslab.train.tasks.language import Language
from reslab.train.tasks.routes import Routes
from tests.small import get_config

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def routers_of(file, kind):
    names = {"in": "linear1.weight", "in_bias": "linear1.bias"}
    names |= {"out": "linear2.weight", "out_bias": "linear2.bias"}
    return [
        {key: file[f"{kind}_router{i}.{name}"].T for key, name in names.items()}
        for i in range(4)
    ]


def test_routers_and_their_loss_are_the_recorded_ones(x64):
    with np.load(GOLDENS / "dr_llm.npz") as stored:
        file = {k.removeprefix("dev_"): stored[k] for k in stored}
    ranks = np.broadcast_to(np.arange(11), (2, 11))
    weights = effective_weights(file["focal_counts"], 0.999)

    def loss(routers, features):
        pairs = zip(routers, features, strict=True)
        logits = jnp.stack(
            [dr_llm.router_logits(router, h, ranks, 8) for router, h in pairs], axis=1
        )
        focal = focal_loss(logits, file["focal_labels"], weights, 2.0)
        total = jnp.sum(logits * file["cot_router_logits"])
        return total + focal * file["cot_focal_UNVERIFIED"][0], (logits, focal)

    (total, (logits, focal)), slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        routers_of(file, "in"), file["in_hidden_per_layer"]
    )
    np.testing.assert_allclose(logits, file["out_router_logits"], rtol=1e-7)
    np.testing.assert_allclose(focal, file["out_focal_UNVERIFIED"][0], rtol=1e-7)
    np.testing.assert_allclose(total, file["loss"], rtol=1e-7)
    wanted = routers_of(file, "grad"), file["grad_hidden_per_layer"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10),
        slopes,
        wanted,
    )
    for budget in (-0.75, -0.5, 0.0, 0.5, 0.75):
        mixed = jax.vmap(lambda p, b=budget: dr_llm.budgeted(p, b))(
            jax.nn.softmax(logits)
        )
        wanted = file[f"decision_pen_{budget}"]
        np.testing.assert_array_equal(jnp.argmax(mixed, axis=-1), wanted)


def labels(depth, corpus):
    about = {"depth": depth, "corpus": corpus, "split": "training"}
    line = {"examples": [3], "path": [0, 1, 1], "score": 1.0, "base": 0.5}
    return "".join(f"{json.dumps(one)}\n" for one in (about, line))


def test_examples_have_the_decisions_of_their_paths(tmp_path):
    file, config = tmp_path / "paths.jsonl", get_config()
    task = Routes(config, labels=str(file))
    corpus = task.record()["sha256"]
    file.write_text(labels(2, corpus))
    examples = task.train_examples()
    assert len(examples) == 1
    np.testing.assert_array_equal(examples[0]["routes"], [1, 2])
    plain = Language(config).train_examples()[3]
    np.testing.assert_array_equal(examples[0]["tokens"], plain["tokens"])
    for text, message in (
        (labels(3, corpus), "paths of a model of 3 layers: expected model.depth, 2"),
        (labels(2, "other"), "paths of other data"),
        ("mine", "expected a file that `reslab search paths` has written"),
    ):
        file.write_text(text)
        with pytest.raises(ReslabError, match=message):
            Routes(config, labels=str(file)).train_examples()


@pytest.mark.conformance
def test_from_search_to_routers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loop.train(get_config(), pathlib.Path("run"))
    options = ("--samples", "16", "--simulations", "4", "--split", "training")
    assert main(["search", "paths", "run", *options]) == 0
    adding = "add_routers(labels='run/paths.jsonl', prompt=6, hidden=5, steps=12)"
    assert main(["transform", adding, "run", "--out", "routed"]) == 0
    assert main(["train", "--from-run", "routed", "--run", "routed"]) == 0
    capsys.readouterr()
    assert main(["eval", "routed"]) == 0
    found = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert 0 <= float(found["eval_layers_applied"]) <= 4
    assert main(["generate", "routed", "--length", "5"]) == 0


@pytest.mark.conformance
def test_layers_that_learn_to_be_skipped_are_repaired(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    loop.train(get_config(), pathlib.Path("run"))
    adding = "add_routers(stack='first', prompt=6, target=0.5, steps=4)"
    assert main(["transform", adding, "run", "--out", "soft"]) == 0
    assert main(["train", "--from-run", "soft", "--run", "soft"]) == 0
    repair = "add_lora(rank=2, freezes=True)"
    assert main(["transform", repair, "soft", "--out", "hard"]) == 0
    before = load("hard")
    assert before.model.stack == "first(prompt=6, target=0.5, is_soft=False)"
    assert main(["train", "--from-run", "hard", "--run", "hard"]) == 0
    after = named_leaves(load("hard").variables)
    for name, leaf in named_leaves(before.variables).items():
        is_same = bool(np.all(leaf == after[name]))
        assert is_same != ("/lora_" in name), name
    capsys.readouterr()
    assert main(["eval", "hard"]) == 0
    assert "eval_layers_applied" in capsys.readouterr().out
