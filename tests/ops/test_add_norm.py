"""Addition and norm: definition, kernel against it, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from reslab.core.errors import ReslabError
from reslab.nn.norms.crms import CompressedRMSNorm
from reslab.nn.norms.derf import DynamicErf
from reslab.nn.norms.dyt import DynamicTanh
from reslab.nn.norms.layer import LayerNorm
from reslab.nn.norms.rms import RMSNorm
from reslab.nn.norms.seednorm import SelfRescaledNorm
from reslab.nn.norms.single_scale import SingleScaleNorm
from reslab.ops.add_norm import pallas_tpu
from reslab.ops.add_norm.api import add_norm
from reslab.ops.add_norm.reference import NORMS, reference_add_norm

MODULES = {
    "rms": RMSNorm(),
    "single_scale": SingleScaleNorm(),
    "layer": LayerNorm(),
    "crms": CompressedRMSNorm(),
    "seednorm": SelfRescaledNorm(epsilon=1e-6),
    "dyt": DynamicTanh(),
    "derf": DynamicErf(),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_the_addition_and_the_module(emulated, name, dtype):
    x, update = emulated.arrays([(2, 3, 16)] * 2, dtype)
    module = MODULES[name]
    variables = jax.tree.map(
        lambda a: a + 0.3 * jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape),
        module.init(jax.random.key(0), x),
    )
    given = dict(variables.get("params", {}))
    if "gain" in given:
        given["gain"] = 1 + jax.tree.leaves(given["gain"])[0]
    given = {key: jax.tree.leaves(value)[0] for key, value in given.items()}
    norm = "rms" if name == "single_scale" else name
    total, y = add_norm(x, update, norm=norm, parameters=given, scale=0.5)
    np.testing.assert_array_equal(total, x + update)
    expected = module.apply(variables, x + update) * jnp.asarray(0.5, dtype)
    emulated.assert_close(y, expected, dtype)


def both_ways(run, arguments, cotangents):
    """What a function returns, and its gradients."""

    def gradients(*arguments):
        outputs, pull = jax.vjp(run, *arguments)
        return outputs, pull(cotangents)

    return jax.jit(gradients)(*arguments)


CASES = [
    *((norm, (3, 7, 200), "float32") for norm in NORMS),
    ("seednorm", (2, 50, 256), "bfloat16"),
    ("layer", (1, 1, 256), "float32"),
    ("rms", (1, 600, 128), "float32"),  # Several blocks, the last not full.
    ("rms", (4, 5), "float32"),
]


@pytest.mark.parametrize("norm, shape, dtype", CASES)
def test_the_kernel_equals_the_reference(emulated, norm, shape, dtype):
    *arguments, by_sum, by_output = emulated.arrays([shape] * 4, dtype)
    count = len(NORMS[norm][1])
    rows = tuple(1 + 0.2 * a for a in emulated.arrays([shape[-1:]] * count, seed=1))

    # Memory that is poisoned, and races, where there are parts of a block and a rest.
    interpret = emulated.interpret if (norm, dtype) == ("rms", "float32") else True

    def kernel(x, update, rows):
        return pallas_tpu.add_norm(norm, x, update, rows, 1e-6, interpret)

    def reference(x, update, rows):
        return reference_add_norm(norm, x, update, rows, 1e-6)

    got, expected = (
        both_ways(run, (*arguments, rows), (by_sum, by_output))
        for run in (kernel, reference)
    )
    emulated.assert_close(got[0], expected[0], dtype)
    # In float32 from the sum on: what is compared with is itself rounded otherwise.
    total, *cotangents = (
        a.astype(jnp.float32) for a in (expected[0][0], by_sum, by_output)
    )
    start = (total, jnp.zeros_like(total), rows)
    _, exact = both_ways(reference, start, tuple(cotangents))
    exact = (*(a.astype(dtype) for a in exact[:2]), exact[2])
    emulated.assert_close(got[1], exact, dtype)


def test_under_remat_scan_and_vmap(emulated):
    x, update, gain = emulated.arrays([(2, 9, 128), (2, 9, 128), (128,)])

    def total(run, is_vmapped):
        def step(carry, _):
            f = jax.checkpoint(run)
            carry, y = (jax.vmap(f, (0, 0, None)) if is_vmapped else f)(
                carry, update, (gain,)
            )
            return carry + y, None

        return lambda x: jnp.sum(jnp.sin(jax.lax.scan(step, x, None, length=2)[0]))

    def kernel(x, update, rows):
        return pallas_tpu.add_norm("rms", x, update, rows, 1e-6, True)

    def reference(x, update, rows):
        return reference_add_norm("rms", x, update, rows, 1e-6)

    expected = jax.jit(jax.grad(total(reference, False)))(x)
    for is_vmapped in (False, True):
        got = jax.jit(jax.grad(total(kernel, is_vmapped)))(x)
        emulated.assert_close(got, expected)


def test_a_gradient_of_the_gradient_is_refused(emulated):
    x, gain = emulated.arrays([(1, 8, 128), (128,)])

    def loss(x):
        return jnp.sum(pallas_tpu.add_norm("rms", x, x, (gain,), 1e-6, True)[1] ** 2)

    with pytest.raises(ReslabError, match=r"add_norm\('rms'\).*implementation"):
        jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))(x)


@pytest.mark.parametrize("last", ["tensor", "sequence"])
def test_devices_share_the_batch(emulated, last):
    x, update, by_sum, by_output = emulated.arrays([(8, 6, 128)] * 4)
    (gain,) = emulated.arrays([(128,)], seed=1)

    def run(x, update, rows):
        return pallas_tpu.add_norm("rms", x, update, rows, 1e-6, True)

    arguments = (x, update, (gain,)), (by_sum, by_output)
    expected = both_ways(run, *arguments)
    kinds = (AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", last), axis_types=kinds)
    with jax.set_mesh(mesh):
        got = both_ways(run, *arguments)
    emulated.assert_close(got, expected)


def test_auto_never_fails_and_takes_what_pays(on_tpu):
    shapes = [(2, 4, 128), (3, 4, 50), (1, 2, 100_000)]
    for shape in shapes:
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        jax.eval_shape(add_norm, x, x)
        with on_tpu((2, 1)):
            jax.eval_shape(add_norm, x, x)


@pytest.mark.parametrize(
    "shape, dtype, devices, message",
    [
        ((2, 4, 128), "float16", 1, "dtype float16"),
        ((3, 4, 128), "float32", 2, "batch 3 over 2 devices, the nearest is 4"),
        ((2, 4, 90_000), "float32", 1, r"width 90000, the widest is \d+"),
    ],
)
def test_the_kernel_names_its_limit(on_tpu, shape, dtype, devices, message):
    x = jax.ShapeDtypeStruct(shape, dtype)
    with on_tpu((devices, 1)), pytest.raises(ReslabError, match=message) as error:
        jax.eval_shape(lambda x: add_norm(x, x, implementation="pallas"), x)
    assert "\n" not in str(error.value)


def test_bad_input_is_one_line():
    x = jnp.ones((2, 4))
    for keywords, message in [
        ({"norm": "rsm"}, "'rms'"),
        ({"norm": "dyt"}, "slope"),
        ({"parameters": {"bias": 1.0}}, "bias"),
        ({"parameters": {"gain": jnp.ones(3)}}, r"\(4,\)"),
        ({"implementation": "xla"}, "pallas"),
        ({"implementation": "pallas"}, "platform cpu"),
    ]:
        with pytest.raises(ReslabError, match=message):
            add_norm(x, x, **keywords)
    with pytest.raises(ReslabError, match="update"):
        add_norm(x, jnp.ones((2, 3)))
