"""Interventions on every kind of stream, scanned and unrolled, jitted and mapped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.observe import interventions

TOKENS = np.random.default_rng(3).integers(0, 24, (2, 6), dtype=np.int32)
OTHERS = np.where(np.arange(6) == 2, (TOKENS + 5) % 24, TOKENS)


def make(**fields):
    defaults = {"features": 8, "depth": 3, "ffn": "gelu(hidden=12)"}
    defaults |= {"mixer": "attention(heads=2)", "max_length": 8}
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return LanguageModel(vocabulary_size=24, **wide | defaults | fields)


def variables_of(model):
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))["params"]
    rng = np.random.default_rng(7)
    return {
        "params": jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape), shapes)
    }


MODELS = {
    "plain": {},
    "post": {"placement": "post"},
    "deepnorm": {"placement": "deepnorm"},
    "hyper": {"residual": "hyper(streams=2)"},
    "attnres": {"residual": "attnres"},
    "denseformer": {"residual": "denseformer"},
    "reversible": {"residual": "reversible", "block": "reversible"},
    "macaron": {"block": "macaron"},
    "looped": {"stack": "looped(loops=2)", "depth": 2},
    "gated delta": {"mixer": "gated_delta(heads=2)"},
}


@pytest.mark.conformance
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_unrolled", [False, True])
def test_patching_every_reading_gives_the_clean_run(x64, name, is_unrolled):
    model = make(**MODELS[name], is_unrolled=is_unrolled)
    variables = variables_of(model)
    wanted = model.apply(variables, TOKENS)
    names = ("reading", "output", "heads", "neurons")
    clean, values = interventions.run(model, variables, TOKENS, read=names)
    np.testing.assert_allclose(clean, wanted, rtol=1e-10)
    count = 3 * 3 if name == "macaron" else 4 * 2 if name == "looped" else 3 * 2
    if name == "looped":
        count = 8
    assert (
        values["reading"].values.shape
        == values["output"].values.shape
        == (count, 2, 6, 8)
    )
    end = interventions.run(model, variables, TOKENS, read=["end"])[1]["end"]
    # The last features are what the clean run's were: so is everything after them.
    edits = [interventions.replace("end", end.values[0])]
    patched, _ = interventions.run(model, variables, OTHERS, edits=edits)
    np.testing.assert_allclose(patched, wanted, rtol=1e-10)
    edits = [interventions.replace("output", values["output"])]
    run = functools.partial(interventions.run, model, variables, edits=edits)
    # The outputs are all that tells two equal embeddings' continuations apart.
    same, read = jax.jit(functools.partial(run, read=names[:2]))(TOKENS)
    np.testing.assert_allclose(same, wanted, rtol=1e-10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10),
        read["output"],
        values["output"],
    )
    # Of a run on other tokens, every sublayer gets its own.
    for activation in ("heads", "neurons"):
        edit = interventions.replace(activation, values[activation])
        same, _ = interventions.run(model, variables, TOKENS, edits=edit)
        np.testing.assert_allclose(same, wanted, rtol=1e-10)


@pytest.mark.parametrize("name", ["plain", "hyper", "attnres", "looped"])
def test_a_sweep_is_one_program(x64, name):
    model = make(**MODELS[name])
    variables = variables_of(model)

    @jax.jit
    def ablated(layer, sublayer, position):
        edit = interventions.ablate(
            "output", layer=layer, sublayer=sublayer, position=position
        )
        return interventions.run(model, variables, TOKENS, edits=[edit])[0]

    swept = jax.vmap(ablated, (0, None, None))(jnp.arange(2), 1, 3)
    for layer in range(2):
        edit = interventions.scale("output", 0.0, layer=layer, sublayer=1, position=3)
        unrolled = model.clone(is_unrolled=True)
        one, _ = interventions.run(unrolled, variables, TOKENS, edits=[edit])
        np.testing.assert_allclose(swept[layer], one, rtol=1e-9)
        whole = model.apply(variables, TOKENS)
        # Causal: what comes before the position does not change.
        np.testing.assert_allclose(one[:, :3], whole[:, :3], rtol=1e-9)
        assert np.all(np.any(one[:, 3:] != whole[:, 3:], axis=-1))


@pytest.mark.parametrize("name", ["plain", "attnres", "looped"])
def test_the_gradient_by_an_added_value_is_that_by_the_activation(x64, name):
    model = make(**MODELS[name])
    variables = variables_of(model)
    _, values = interventions.run(model, variables, TOKENS, read=["output"])
    zeros = jnp.zeros_like(values["output"].values)

    def loss(added):
        added = dataclasses.replace(values["output"], values=added)
        edit = interventions.add("output", added)
        logits, _ = interventions.run(model, variables, TOKENS, edits=[edit])
        return jnp.sum(jnp.sin(logits))

    gradient = jax.jit(jax.grad(loss))(zeros)
    direction = np.random.default_rng(0).standard_normal(zeros.shape)
    step = 1e-6
    difference = (loss(step * direction) - loss(-step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(gradient * direction), difference, rtol=1e-7)


def test_a_head_is_ablated_by_the_rows_of_the_output_projection(x64):
    model = make()
    variables = variables_of(model)
    edit = interventions.ablate("heads", layer=1, head=0)
    found, _ = interventions.run(model, variables, TOKENS, edits=[edit])

    def silenced(path, leaf):
        if "output" not in str(path):
            return leaf
        return np.where(np.arange(2)[None, :, None, None] == 0, [[[0.0]]], leaf)

    def only(path, leaf):
        is_second = np.arange(3).reshape(3, *(1,) * (leaf.ndim - 1)) == 1
        return np.where(is_second, silenced(path, leaf), leaf)

    body = jax.tree_util.tree_map_with_path(only, variables["params"]["layers"]["body"])
    layers = {**variables["params"]["layers"], "body": body}
    wanted = model.apply({"params": {**variables["params"], "layers": layers}}, TOKENS)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_one_stream_of_several_is_changed(x64):
    model = make(residual="hyper(streams=2)")
    variables = variables_of(model)
    both = interventions.scale("stream", 2.0, layer=0, sublayer=0)
    each = [
        interventions.scale("stream", 2.0, layer=0, sublayer=0, stream=index)
        for index in (0, 1)
    ]
    logits = [
        interventions.run(model, variables, TOKENS, edits=edits)[0]
        for edits in ([both], each, each[:1], each[1:])
    ]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-10)
    assert np.any(logits[2] != logits[3]) and np.any(logits[2] != logits[0])


def test_without_edits_the_program_is_the_same(x64):
    model = make(residual="attnres")
    variables = variables_of(model)

    def text():
        return jax.jit(lambda v: model.apply(v, TOKENS)).lower(variables).as_text()

    before = text()
    interventions.run(
        *(model, variables, TOKENS), edits=[interventions.ablate("heads", head=0)]
    )
    assert text() == before


WRONG = {
    "no such activation": (
        interventions.ablate("hedas"),
        "no activation 'hedas' to change in this model: expected end, heads",
    ),
    "no such head": (interventions.ablate("heads", head=2), "expected 0 to 1; got 2"),
    "no head axis": (interventions.ablate("output", head=0), "it has no such axis"),
    "no such position": (interventions.ablate("output", position=6), "got 6"),
    "no such layer": (interventions.ablate("output", layer=3), "got 3"),
    "no heads there": (interventions.ablate("heads", sublayer=1), "expected 0; got 1"),
    "another shape": (interventions.replace("output", np.ones(5)), "broadcasts to"),
    "a complex value": (interventions.add("output", 1j), "real numbers"),
    "a word": (interventions.replace("output", "x"), "got 'x'"),
    "a mask of layers": (interventions.ablate("output", layer=[False, True]), "whole"),
    "half a layer": (interventions.ablate("output", layer=1.5), "got 1.5"),
    "half a head": (interventions.ablate("heads", head=0.5), "whole numbers"),
    "no layers": (interventions.ablate("output", layer=[]), "whole numbers"),
    "a layer of the end": (interventions.ablate("end", layer=0), "follows all layers"),
    "a long mask": (interventions.ablate("output", position=np.ones(7, bool)), "mask"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_edited_is_refused(x64, name):
    edit, message = WRONG[name]
    model = make()
    with pytest.raises(ReslabError, match=message):
        interventions.run(model, variables_of(model), TOKENS, edits=[edit])


def test_the_sources_of_a_history_are_not_edited(x64):
    model = make(residual="attnres")
    edit = interventions.ablate("stream", layer=1)
    with pytest.raises(ReslabError, match="no activation 'stream'"):
        interventions.run(model, variables_of(model), TOKENS, edits=[edit])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ReslabError, match="unknown kind of edit 'put'"):
        interventions.Edit("output", "put", 0.0)


def test_what_cannot_be_read_is_refused(x64):
    model = make()
    variables = variables_of(model)
    for name in ("stream", "hedas"):
        with pytest.raises(ReslabError, match=f"no activation '{name}' to read"):
            interventions.run(model, variables, TOKENS, read=name)
    repeated = model.clone(stack="path(layers=(0, 1, 1))")
    with pytest.raises(ReslabError, match="a path that names every layer once"):
        interventions.run(repeated, variables, TOKENS, read="output")


@pytest.mark.conformance
def test_a_path_is_patched_by_its_own_activations(x64):
    model = make(stack="path(layers=(2, 0))")
    variables = variables_of(model)
    wanted, values = interventions.run(model, variables, TOKENS, read="output")
    np.testing.assert_array_equal(values["output"].sites, [0, 1, 4, 5])
    edit = interventions.replace("output", values["output"])
    found, _ = interventions.run(model, variables, TOKENS, edits=edit)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
