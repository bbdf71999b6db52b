"""What groups do by method, by layer and by kind of parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core.errors import ReslabError
from reslab.core.layout import Layout, layouts, read
from reslab.core.trees import named_leaves
from reslab.models.lm import LanguageModel
from reslab.optim.base.group import parse_groups
from reslab.optim.clipping import clip_by_layer_norm
from reslab.optim.groups import grouped, plans

STACK = read(("layers", "embed", "mlp"), (0, 1, 2))
PARAMS = {
    "embedding": jnp.full((3, 2), 1.0),
    "layers": {"kernel": jnp.full((3, 2, 4), 2.0), "gain": jnp.full((3, 2), 1.0)},
    "head": jnp.full((2, 3), 3.0),
}
LAYOUTS = {
    "embedding": read(("vocab", "embed")),
    "layers": {"kernel": STACK, "gain": read(("layers", "embed"), (0, 1, 2))},
    "head": read(("embed", "vocab")),
}
GRADIENTS = jax.tree.map(jnp.ones_like, PARAMS)


def step_of(groups, method="sgd(momentum=0.0)", steps=1, clip=0.0, **options):
    transformation = grouped(
        method,
        PARAMS,
        parse_groups(groups),
        learning_rate=1.0,
        schedule=lambda _: 1.0,
        weight_decay=0.0,
        clip=clip,
        layouts=LAYOUTS,
        steps=10,
        **options,
    )
    state = transformation.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(steps):
            updates, state = transformation.update(GRADIENTS, state, PARAMS)
    return updates, state


def test_a_group_names_its_method_and_rate():
    updates, state = step_of(
        [("head", {"method": "adamw(b1=0.0, b2=0.5)", "lr": 0.25, "lr_scale": 2.0})]
    )
    # Adam's first step is the sign of the gradient, whatever the betas.
    np.testing.assert_allclose(updates["head"], -0.5, rtol=1e-5)
    np.testing.assert_array_equal(updates["embedding"], -1.0)
    moments = [name for name in named_leaves(state) if name.endswith("head")]
    assert len(moments) == 2 and len(named_leaves(state)) < 8


def test_a_group_has_a_schedule_of_its_own():
    groups = [("head", {"schedule": "linear(final=0.0)"})]
    updates, _ = step_of(groups, steps=6)
    np.testing.assert_allclose(updates["head"], -0.5, rtol=1e-6)
    np.testing.assert_array_equal(updates["embedding"], -1.0)


@pytest.mark.parametrize(
    "groups, words",
    [
        ([("kernel", {"method": "muonn"})], "unknown optimizers 'muonn'"),
        ([("kernel", {"scaling": "mup(depper=2.0)"})], "no argument 'depper'"),
        ([("kernel", {"lr": -1.0})], "lr: expected at least 0; got -1.0"),
        ([("kernel", {"clip": True})], "clip: expected int or float; got True"),
        ([("kernal", {"method": "sgd"})], "'kernal' matches no parameter"),
        (
            [("kernel", {"method": "sgd"}), ("layers", {"method": "adamw"})],
            "two groups claim layers/kernel: expected one method; got 'sgd', and "
            "'adamw' by 'layers'",
        ),
        ([("kernel", {"scaling": "mup(wider=2.0)"})], "a method with an epsilon"),
        ([("kernel", {"scaling": "unfreeze(every=0)"})], "every: expected at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(groups, words):
    with pytest.raises(ReslabError) as caught:
        step_of(groups)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_rest_may_have_another_method():
    step_of([("kernel", {"method": "sgd"}), (".", {"method": "adamw"})])


def test_layer_decay_falls_from_the_top():
    updates, _ = step_of([(".", {"scaling": "layer_decay(decay=0.5)"})])
    np.testing.assert_allclose(
        updates["layers"]["kernel"][:, 0, 0], [-0.25, -0.5, -1.0]
    )
    np.testing.assert_allclose(updates["embedding"], -0.125)
    np.testing.assert_allclose(updates["head"], -1.0)


def test_the_bottom_is_frozen_and_does_not_count_in_the_clip():
    updates, state = step_of([(".", {"scaling": "freeze_bottom(count=2)"})], clip=1.0)
    size = np.sqrt(2 * 4 + 2 + 2 * 3)
    for leaf in (updates["layers"]["kernel"], updates["layers"]["gain"]):
        np.testing.assert_array_equal(leaf[:2], 0.0)
        np.testing.assert_allclose(leaf[2], -1 / size, rtol=1e-6)
    np.testing.assert_array_equal(updates["embedding"], 0.0)
    assert not [name for name in named_leaves(state) if "embedding" in name]


def test_layers_thaw_from_the_top():
    groups = [(".", {"scaling": "unfreeze(every=2)"})]
    for steps, kernel, embedding in (
        (2, [0, 0, 0], 0),
        (3, [0, 0, -1], 0),
        (7, [-1, -1, -1], 0),
        (9, [-1, -1, -1], -1),
    ):
        updates, _ = step_of(groups, steps=steps)
        np.testing.assert_array_equal(updates["layers"]["kernel"][:, 0, 0], kernel)
        np.testing.assert_array_equal(updates["embedding"][0, 0], embedding)


def test_mup_scales_rate_decay_and_epsilon():
    made = plans(
        "adamw",
        PARAMS,
        parse_groups([(".", {"scaling": "mup(wider=4.0, deeper=9.0, alpha=0.5)"})]),
        learning_rate=1.0,
        weight_decay=0.1,
        layouts=LAYOUTS,
    )
    kernel, gain = made["layers/kernel"], made["layers/gain"]
    assert kernel.factor == pytest.approx(1 / 4 / 3)
    assert kernel.weight_decay == pytest.approx(0.4)
    assert kernel.epsilon_scale == pytest.approx(1 / 4 / 3)
    assert gain.factor == pytest.approx(1 / 3) and gain.weight_decay == 0.1
    assert made["head"].factor == 1 and made["head"].epsilon_scale == 0.25


def test_sharpness_tells_projections_apart():
    names = ("mixer/query/kernel", "mixer/value/kernel", "ffn/output/kernel", "head")
    params = {name: jnp.ones((2, 2)) for name in (*names, "gain")}
    kinds = {name: Layout("matrix", (), (0,), (1,)) for name in names}
    kinds |= {"head": Layout("head", (), (0,), (1,)), "gain": Layout()}
    made = plans(
        "sgd",
        params,
        parse_groups([(".", {"scaling": "sharpness"})]),
        learning_rate=1.0,
        weight_decay=0.0,
        layouts=kinds,
    )
    assert [made[name].factor for name in (*names, "gain")] == [8, 4, 6, 10, 1]


def test_clipping_takes_a_norm_for_each_layer():
    gradient = jnp.asarray([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    clip = clip_by_layer_norm(1.0, Layout("vector", (0,)))
    clipped, _ = clip.update(gradient, clip.init(gradient))
    np.testing.assert_allclose(clipped, [[0.6, 0.8], [0.3, 0.4], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(clipped[1:], gradient[1:])
    updates, _ = step_of([("layers", {"clip": 0.5})])
    norms = jnp.linalg.norm(updates["layers"]["kernel"].reshape(3, -1), axis=1)
    np.testing.assert_allclose(norms, 0.5, rtol=1e-6)
    np.testing.assert_array_equal(updates["head"], -1.0)


def test_layouts_are_read_from_logical_axes():
    model = LanguageModel(
        vocabulary_size=24, features=16, depth=3, mixer="gated_delta(heads=2)"
    )
    tokens = jnp.zeros((1, 2), int)
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    found = named_leaves(layouts(boxed))
    block = "layers/body/segment_0/block_0/"
    query, output = (found[f"{block}mixer/{n}/kernel"] for n in ("query", "output"))
    assert (query.kind, query.inputs, query.outputs) == ("matrix", (1,), (2, 3))
    assert (output.stack, output.inputs, output.outputs) == ((0,), (1, 2), (3,))
    assert query.layers == (0, 1, 2)
    assert found[f"{block}mixer/query_convolution/taps"].kind == "vector"
    assert (found["embedding"].kind, found["head"].kind) == ("embedding", "head")
    assert found["final_norm/gain"] == read(("embed",))


def test_a_kernel_is_a_matrix_and_back():
    layout = read(("layers", "heads", "head_dim", "embed"))
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    matrices = layout.as_matrices(x)
    np.testing.assert_array_equal(matrices, x.reshape(2, 12, 5))
    np.testing.assert_array_equal(layout.from_matrices(matrices, x.shape), x)
    rows = matrices.mean(2, keepdims=True)
    assert layout.from_matrices(rows, x.shape).shape == (2, 3, 4, 1)
    assert layout.from_matrices(rows.mean(1, keepdims=True), x.shape).shape == (
        *(2, 1, 1, 1),
    )


def test_plain_optax_without_layouts():
    clip = optax.chain(clip_by_layer_norm(0.5), optax.sgd(1.0))
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(4)}
    updates, _ = clip.update(params, clip.init(params))
    np.testing.assert_allclose(updates["w"], -0.25, rtol=1e-6)
