"""Every probe on every kind of residual, placement and stack; and what each means."""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.depth import layer_numbers, sum_by_layer
from reslab.core.errors import ReslabError
from reslab.core.taps import TAPS, tap
from reslab.core.trees import named_leaves
from reslab.nn.ffns.gelu import GELUFeedForward
from reslab.observe.probes import attention_rank, quantities

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"
DESIGNS = {
    "post hyper": {"placement": "post", "residual": "hyper(streams=2)"},
    "looped, tiled": {
        "stack": "looped(loops=2)",
        "mixer": ("attention(heads=2, window=3)", "attention(heads=2)"),
    },
    "remat shared": {
        "remat": "full",
        "mixer": "attention(heads=2, value_path='value_residual')",
    },
    "unrolled": {"is_unrolled": True},
    "reversible": {"block": "reversible", "residual": "reversible"},
}
USUAL = ("post hyper",)
COMMON = ("looped, tiled",)
# These need a part that not every model has.
SPECIAL = {"depth_weights", "expert_load", "token_routing"}


def look(view, *names):
    def answers():
        return {
            f"{name}/{key}": value
            for name in names
            for key, value in registry.make("probes", name)(view).items()
        }

    with jax.numpy_dtype_promotion("standard"):
        return jax.device_get(jax.jit(answers)())


@pytest.mark.conformance
@pytest.mark.parametrize(
    "design",
    [
        name
        if name in USUAL
        else pytest.param(
            name,
            marks=pytest.mark.conformance if name in COMMON else pytest.mark.exhaustive,
        )
        for name in DESIGNS
    ],
)
def test_every_probe_answers(design, view_of, small_model):
    model, params, tokens = small_model(**DESIGNS[design])
    names = [n for n in registry.names("probes") if n not in SPECIAL]
    found = look(view_of(model, params, tokens), *names)
    layers = model.depth * (2 if "looped" in design else 1)
    sizes = {
        "site": (2 * layers + 1,),
        "sublayer": (2 * layers,),
        "layer": (layers,),
        "layer x layer": (layers + 1, layers + 1),
    }
    titles = quantities(names)
    assert found.keys() == titles.keys()
    for name, values in found.items():
        # A layer's parameters are the same in every pass.
        is_weights = name in ("gradient/norm", "update/ratio")
        is_weights |= name.split("/")[0] in ("heavy_tail", "momentum_spectrum")
        shape = (model.depth,) if is_weights else sizes[titles[name].axis]
        assert values.shape == shape, name
        assert np.all(np.isfinite(values)), name


@pytest.mark.conformance
def test_watching_changes_nothing(view_of, small_model):
    model, params, tokens = small_model(residual="hyper(streams=2)")
    view = view_of(model, params, tokens)
    logits, gradient = jax.jit(lambda: (view.logits, view.training_gradient[0]))()
    features, _ = model.apply({"params": params}, tokens, method="hidden")
    unseen = model.apply({"params": params}, features, method="logits")
    np.testing.assert_allclose(logits, unseen, rtol=1e-6, atol=1e-6)
    alone = jax.jit(jax.grad(lambda p: view_of(model, p, tokens).loss()))(params)
    for name, leaf in named_leaves(gradient).items():
        np.testing.assert_allclose(
            leaf, named_leaves(alone)[name], rtol=1e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.conformance
@pytest.mark.optimized  # What is not used is taken out.
def test_taps_cost_nothing_when_nobody_looks(small_model, monkeypatch):
    """The program with a tap in it is the program without it."""
    model, params, tokens = small_model(depth=1, residual="hyper(streams=2)")

    def compiled():
        function = jax.jit(lambda p: model.apply({"params": p}, tokens))
        return function.lower(params).compile().as_text()

    tapped = compiled()
    monkeypatch.setattr("reslab.nn.residuals.hyper.tap", lambda *_: None)
    jax.clear_caches()
    assert without_places(compiled()) == without_places(tapped)


def without_places(text):
    """Drops the metadata: names of files and lines."""
    return [line.split(", metadata=")[0] for line in text.splitlines() if " = " in line]


@pytest.mark.conformance
def test_stream_gradient_is_the_gradient_by_the_stream(view_of, small_model):
    """Of the first sublayer it is the gradient by the embedded tokens."""
    model, params, tokens = small_model()
    view = view_of(model, params, tokens)
    _, streams = jax.jit(lambda: view.training_gradient)()
    # Every token its own row: then the embedding's gradient is the stream's.
    own = jnp.arange(tokens.size).reshape(tokens.shape)
    rows = params["embedding"][tokens].reshape(tokens.size, -1)

    def loss(rows):
        wide = model.clone(vocabulary_size=tokens.size)
        unused = jnp.zeros((rows.shape[1], tokens.size))
        table = {**params, "embedding": rows, "head": unused}
        hidden, _ = wide.apply({"params": table}, own[:, :-1], method="hidden")
        logits = model.apply({"params": params}, hidden, method="logits")
        chosen = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(chosen, tokens[:, 1:, None], -1))

    expected = jnp.sum(jnp.square(jax.jit(jax.grad(loss))(rows)))
    np.testing.assert_allclose(streams[0], expected, rtol=1e-4)


def test_an_identity_layer(view_of, small_model):
    """Adds nothing, turns nothing, and is not missed."""
    model, params, tokens = small_model()
    idle = 1

    def silence(path, leaf):
        name = "/".join(str(k.key) for k in path)
        is_output = "output/kernel" in name or "down/kernel" in name
        return leaf.at[idle].set(0.0) if is_output else leaf

    params = jax.tree_util.tree_map_with_path(silence, params)
    names = ("contribution", "angular_distance", "layer_removal")
    found = look(view_of(model, params, tokens), *names)
    np.testing.assert_array_equal(found["contribution/relative"][2:4], 0.0)
    assert found["contribution/layer_relative"][idle] == 0
    np.testing.assert_allclose(found["angular_distance/influence"][idle], 0, atol=1e-6)
    assert found["layer_removal/increase"][idle] == 0
    assert found["layer_removal/increase"][0] != 0


@pytest.mark.conformance
def test_post_norm_keeps_the_norm_and_pre_norm_lets_it_grow(view_of, small_model):
    def norm(**parts):
        return look(view_of(*small_model(**parts)), "stream")["stream/norm"]

    width = 8
    np.testing.assert_allclose(
        norm(placement="post", embedding_std=1.0)[1:], width**0.5, rtol=1e-3
    )
    pre = norm(placement="pre")
    assert pre[-1] > 5 * pre[0]


def test_the_lens_at_the_end_is_the_output(view_of, small_model):
    found = look(view_of(*small_model()), "logit_lens")
    np.testing.assert_allclose(found["logit_lens/kl_from_final"][-1], 0, atol=1e-6)
    assert found["logit_lens/top_five"][-1] == 1
    assert found["logit_lens/settled"][-1] == 1
    np.testing.assert_allclose(found["logit_lens/exits"].sum(), 1, rtol=1e-6)
    assert np.all(np.diff(found["logit_lens/settled"]) >= 0)


@pytest.mark.conformance
def test_padding_changes_nothing(view_of, small_model):
    model, params, tokens = small_model()
    names = ("stream", "contribution", "kurtosis", "logit_lens", "massive")
    names += ("angular_distance",)
    alone = look(view_of(model, params, tokens), *names)
    padded = jnp.pad(tokens, ((0, 1), (0, 0)), constant_values=3)
    is_counted = jnp.arange(3)[:, None] < jnp.asarray([[2]])
    is_counted = jnp.broadcast_to(is_counted, padded.shape)
    found = look(view_of(model, params, padded, is_counted), *names)
    for name, values in alone.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=1e-6)


def test_depth_weights_are_those_of_the_residual(view_of, small_model):
    model, params, tokens = small_model(residual="hyper(streams=2)")
    read = look(view_of(model, params, tokens), "depth_weights")["depth_weights/read"]
    np.testing.assert_array_equal(read, np.eye(2)[np.arange(6) % 2])


def test_massive_activations_are_found(view_of, small_model):
    model, params, tokens = small_model()
    embedding = params["embedding"].at[:, 3].set(5000.0)
    params = {**params, "embedding": embedding}
    found = look(view_of(model, params, tokens), "massive")
    assert found["massive/first"][0] == 5000
    assert found["massive/count"][0] == tokens.size
    assert found["massive/median"][0] < 1


class Experts(GELUFeedForward):
    """Reports a load, as a layer of experts would."""

    def __call__(self, x):
        tap(self, "expert_load", jnp.asarray([0.75, 0.25]))
        return super().__call__(x)


def test_expert_load_is_collected(view_of, small_model):
    found = look(view_of(*small_model(ffn=Experts)), "expert_load")
    np.testing.assert_allclose(found["expert_load/share"], [[0.75, 0.25]] * 3)


@pytest.mark.conformance
def test_routers_are_looked_into(view_of, small_model):
    ffn = "experts(experts=4, chosen=2, capacity=0.6)"
    found = look(view_of(*small_model(ffn=ffn)), "expert_load")
    np.testing.assert_allclose(found["expert_load/share"].sum(-1), 1.0, rtol=1e-6)
    assert (
        (found["expert_load/entropy"] > 0) & (found["expert_load/entropy"] < 1.4)
    ).all()
    assert (found["expert_load/dropped"] > 0.2).all()


@pytest.mark.parametrize(
    "name, words", [("depth_weights", "one stream"), ("expert_load", "no experts")]
)
def test_what_a_model_cannot_answer(name, words, view_of, small_model):
    with pytest.raises(ReslabError, match=words):
        look(view_of(*small_model()), name)


def test_a_model_without_sublayers(view_of, small_model):
    view = view_of(*small_model())
    with pytest.raises(ReslabError, match="sublayers along depth"):
        look(dataclasses.replace(view, forward=dict), "stream")


@pytest.mark.conformance
def test_the_order_of_probes_does_not_matter(view_of, small_model):
    """What one of them needs first, the others may need later."""
    found = look(view_of(*small_model()), "gradient", "stream")
    again = look(view_of(*small_model()), "stream", "gradient")
    for name, values in found.items():
        np.testing.assert_allclose(values, again[name], rtol=1e-6)


@pytest.mark.conformance
def test_several_streams_end_as_large_as_one(view_of, small_model):
    """Hyper-connections start as the plain residual: all figures must say so."""
    names = ("stream", "contribution", "angular_distance", "logit_lens", "kurtosis")
    # Large embeddings: the final norm's epsilon is not to be seen.
    plain = look(view_of(*small_model(embedding_std=1.0)), *names)
    hyper = small_model(residual="hyper(streams=4)", embedding_std=1.0)
    hyper = look(view_of(*hyper), *names)
    for name, values in plain.items():
        np.testing.assert_allclose(
            hyper[name], values, rtol=1e-3, atol=1e-4, err_msg=name
        )


class ThreeSublayers(nn.Module):
    """A block with one sublayer more than the standard one, and sites with gaps."""

    residual: str = "plain"
    stride: int = 5

    writes_shared = False

    @nn.compact
    def __call__(self, stream, shared, *, layer, positions, segments=None, state=None):
        residual = registry.make("residuals", self.residual, name="residual")
        for index in range(3):
            placement = registry.make("placements", "pre", name=f"part_{index}")
            dense = nn.Dense(stream.shape[-1], name=f"dense_{index}")
            site = self.stride * layer + index
            stream = placement(stream, residual, dense, site=site)
        return stream, shared, state


@pytest.mark.conformance
def test_sites_may_have_gaps(view_of, small_model):
    gaps, params, tokens = small_model(block=ThreeSublayers)
    dense = gaps.clone(block=functools.partial(ThreeSublayers, stride=3))
    for name in ("gradient", "stream", "contribution"):
        found = look(view_of(gaps, params, tokens), name)
        for key, values in look(view_of(dense, params, tokens), name).items():
            np.testing.assert_array_equal(found[key], values)
    assert found["contribution/relative"].shape == (9,)
    assert found["contribution/layer_relative"].shape == (3,)


def test_layers_of_unequal_length_have_no_figures_by_layer(view_of, small_model):
    view = view_of(*small_model(block=("standard", ThreeSublayers), depth=2))
    look(view, "stream")
    with pytest.raises(ReslabError, match="5 sublayers in 2 layers"):
        look(view, "contribution")


def test_taps_need_a_watcher(small_model):
    model, params, tokens = small_model(residual="hyper(streams=2)")
    _, taps = model.apply({"params": params}, tokens, mutable=[TAPS])
    assert not taps


@pytest.mark.conformance
def test_layers_are_numbered_in_the_order_of_depth(small_model):
    """Two mixers over five layers: one span of two periods, then one of one."""
    mixers = ("gated_delta(heads=1)", "attention(heads=2)")
    _, params, _ = small_model(depth=5, mixer=mixers)
    numbers = layer_numbers(params)
    prefix = "layers/body/segment_"
    gain = "mixer_placement/input_norm/gain"
    assert numbers[f"{prefix}0/block_0/{gain}"].tolist() == [0, 2]
    assert numbers[f"{prefix}0/block_1/{gain}"].tolist() == [1, 3]
    assert numbers[f"{prefix}1/block_0/{gain}"].tolist() == [4]
    assert "embedding" not in numbers
    ones = jax.tree.map(jnp.ones_like, params)
    sizes = sum_by_layer(lambda x: jnp.asarray(x.size, jnp.float32), ones)
    assert sizes[0] == sizes[2] == sizes[4] != sizes[1] == sizes[3]


def test_parameters_without_layers():
    with pytest.raises(ReslabError, match="no stack of layers"):
        sum_by_layer(jnp.sum, {"head": jnp.ones(2)})


def test_attention_rank_is_the_recorded_one():
    with np.load(GOLDENS / "attention_rank.npz") as file:
        found = attention_rank.mean_rank(jnp.asarray(file["dev_arank_attn"]))
        assert float(found) == file["dev_arank_value"]


@pytest.mark.conformance
def test_attention_rank_is_of_the_maps_of_each_layer(view_of, small_model):
    model, params, tokens = small_model(mixer=("attention(heads=2)", "mamba"))
    found = look(view_of(model, params, tokens), "attention_rank")
    # Layers 0 and 2 of six tokens: a map without its diagonal has a row of zeros.
    ranks = found["attention_rank/rank"]
    assert ranks.shape == (2,)
    assert np.all((ranks > 1) & (ranks <= 5))
    single, params, tokens = small_model(mixer="attention(heads=2, window=1)")
    found = look(view_of(single, params, tokens), "attention_rank")
    assert np.all(found["attention_rank/rank"] == 0)
    mamba, params, tokens = small_model(mixer="mamba")
    with pytest.raises(ReslabError, match="no layer of this model has attention maps"):
        look(view_of(mamba, params, tokens), "attention_rank")


@pytest.mark.conformance
def test_token_routing_is_what_layers_compute(view_of, small_model):
    model, params, tokens = small_model(stack="mod(capacity=0.5)")
    found = look(view_of(model, params, tokens), "token_routing")
    for name in ("share", "agreement"):
        values = found[f"token_routing/{name}"]
        assert values.shape == (1,)
        assert np.all((values >= 0) & (values <= 1))
    plain, params, tokens = small_model()
    with pytest.raises(ReslabError, match="no layer of this model chooses tokens"):
        look(view_of(plain, params, tokens), "token_routing")
