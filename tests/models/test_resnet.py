import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.layout import layouts
from reslab.core.model_state import BATCH_STATS
from reslab.core.trees import named_leaves, unbox
from reslab.models._classifier import as_floats
from reslab.models._inverted_bottleneck import (
    InvertedBottleneck,
    ReversibleBottlenecks,
    branch_names,
)
from reslab.models.resnet import ResNet
from reslab.parallel.mesh import batch_sharding, make_mesh, use_mesh


def make(**fields):
    defaults = {"classes": 10, "image_shape": (8, 8, 1), "features": 8, "stages": 1}
    return ResNet(**defaults | fields)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)).astype(np.uint8)


@pytest.mark.parametrize("norm", ["batch", "group", "evonorm_b0", "evonorm_s0", "rms"])
def test_takes_any_norm_or_norm_and_activation(norm, images):
    variables = jax.eval_shape(make(norm=norm).init, jax.random.key(0), images)
    logits = jax.eval_shape(make(norm=norm).apply, variables, images)
    assert logits.shape == (8, 10)
    assert logits.dtype == jnp.float32
    has_state = norm in ("batch", "evonorm_b0")
    assert (BATCH_STATS in variables) == has_state


def test_optimizers_take_convolutions_for_matrices(images):
    model = make(block="reversible", depth=2)
    boxed = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    kinds = {
        name: layout.kind
        for name, layout in named_leaves(layouts(boxed)).items()
        if name.endswith("kernel") and not name.startswith("head")
    }
    assert {kinds[name] for name in kinds if "depthwise" in name} == {"vector"}
    assert {kinds[name] for name in kinds if "depthwise" not in name} == {"matrix"}


def test_integers_become_minus_one_to_one(images):
    floats = as_floats(images, np.float32)
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(as_floats(floats, np.float32), floats)


@pytest.mark.parametrize("block", ["standard", "reversible"])
def test_strides_are_those_of_the_kernels(block, images):
    model = make(depth=2, stages=3, block=block)
    variables = unbox(jax.eval_shape(model.init, jax.random.key(0), images))
    apart = {"stem", "head", "depthwise", "squeeze", "excite"}
    kernels = {
        name
        for name in named_leaves(variables["params"])
        if name.endswith("kernel") and not apart & set(name.split("/"))
    }
    strides = model.strides()
    assert strides.keys() == kernels
    assert sum(stride == 2 for stride in strides.values()) == 4


def test_statistics_are_those_of_all_devices(images):
    model = make(norm="batch")
    variables = unbox(jax.jit(model.init)(jax.random.key(0), images))

    def run(variables, images):
        return model.apply(variables, images, mutable=[BATCH_STATS])

    logits, state = jax.jit(run)(variables, images)
    mesh = make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    with use_mesh(mesh):
        spread = jax.device_put(images, batch_sharding(mesh))
        parted, spread_state = jax.jit(run)(variables, spread)
    np.testing.assert_allclose(parted, logits, rtol=2e-5, atol=2e-5)
    for name, leaf in named_leaves(spread_state).items():
        np.testing.assert_allclose(
            leaf, named_leaves(state)[name], rtol=2e-5, atol=1e-6, err_msg=name
        )


class TestReversible:
    """The blocks that are undone, against the same ones that keep everything."""

    @pytest.mark.conformance
    @pytest.mark.parametrize(
        "norm", ["batch", pytest.param("evonorm_s0", marks=pytest.mark.conformance)]
    )
    def test_gradients_and_statistics_are_those_of_keeping(self, norm, x64):
        fields = {"norm": norm, "dtype": jnp.float64, "param_dtype": jnp.float64}
        blocks = ReversibleBottlenecks(depth=3, **fields)
        rng = np.random.default_rng(0)
        x, weights = rng.normal(size=(2, 3, 4, 4, 8))
        shapes = unbox(jax.eval_shape(blocks.init, jax.random.key(0), x))
        variables = jax.tree.map(
            lambda s: np.asarray(0.5 + 0.2 * rng.normal(size=s.shape), s.dtype), shapes
        )
        params = variables.pop("params")

        def undone(params, x):
            everything = {"params": params, **variables}
            y, written = blocks.apply(everything, x, mutable=[BATCH_STATS])
            return jnp.sum(weights * y), written.get(BATCH_STATS, {})

        def kept(params, x):
            bottleneck, written = InvertedBottleneck(**fields), {}
            a, b = jnp.split(x, 2, axis=-1)
            for name in branch_names(3):
                own = {k: tree[name] for k, tree in variables.items()}
                y, state = bottleneck.apply(
                    {"params": params[name], **own}, b, mutable=[BATCH_STATS]
                )
                a, b = b, a + y
                if state:
                    written[name] = state[BATCH_STATS]
            return jnp.sum(weights * jnp.concatenate([a, b], -1)), written

        found, wanted = (
            jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(params, x)
            for f in (undone, kept)
        )
        assert np.std(wanted[1][1]) > 0.1
        for (name, a), b in zip(
            named_leaves(found).items(), jax.tree.leaves(wanted), strict=True
        ):
            size = np.max(np.abs(b), initial=1e-9)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * size, err_msg=name)

    @pytest.mark.exhaustive  # A minute; blocks of language models in every run.
    @pytest.mark.optimized
    def test_memory_does_not_grow_with_depth(self):
        def temporaries(depth, block):
            model = make(depth=depth, block=block, norm="group(groups=2)")
            images = jax.ShapeDtypeStruct((64, 8, 8, 1), jnp.uint8)
            shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), images))

            def loss(variables, images):
                return jnp.sum(jnp.square(model.apply(variables, images)))

            compiled = jax.jit(jax.grad(loss)).lower(shapes, images).compile()
            return compiled.memory_analysis().temp_size_in_bytes

        assert temporaries(8, "reversible") < 1.1 * temporaries(3, "reversible")
        assert temporaries(8, "standard") > 1.5 * temporaries(3, "standard")

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"depth": 1}, "at least 2"),
            ({"features": 7}, "an even number; got 7"),
            ({"norm": "power"}, "backward pass writes no state"),
            ({"block": "macaron"}, "'standard' or 'reversible'; got 'macaron'"),
        ],
    )
    def test_refuses(self, fields, told, images):
        with pytest.raises(ReslabError, match=told) as error:
            model = make(**{"depth": 2, "block": "reversible"} | fields)
            jax.eval_shape(model.init, jax.random.key(0), images)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("block", ["standard", "reversible"])
def test_branches_may_end_in_a_norm_that_begins_as_nothing(block, images):
    end = "evonorm_s0(is_affine_only=True, gain_start='zero')"
    fields = {"block": block, "depth": 2, "norm": "rms"}
    plain, ended = make(**fields), make(branch_norm=end, **fields)
    with pytest.raises(ReslabError, match="contains the activation"):
        jax.eval_shape(
            make(branch_norm="evonorm_s0", **fields).init, jax.random.key(0), images
        )
    params = unbox(jax.eval_shape(ended.init, jax.random.key(0), images)["params"])
    before = unbox(jax.eval_shape(plain.init, jax.random.key(0), images)["params"])
    new = named_leaves(params).keys() - named_leaves(before).keys()
    ends = 2 if block == "standard" else 1 + 2
    assert len(new) == 2 * ends
    assert all("branch_norm/" in name for name in new)
