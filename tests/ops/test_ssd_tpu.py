"""The kernels of linear attention with a decay: against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.mixers.mamba2 import Mamba2
from reslab.ops.ssd.api import ssd
from reslab.ops.ssd.pallas_tpu import ssd_kernel
from reslab.ops.ssd.reference import recurrent


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("length", "heads", "groups", "sizes", "resets", "dtype"),
    [
        (130, 4, 2, (24, 16), (20, 60), "float32"),
        (260, 2, 1, (16, 8), (129,), "bfloat16"),
    ],
)
def test_the_kernel_is_the_definition(
    emulated, length, heads, groups, sizes, resets, dtype
):
    """Output, memory and gradients; the definition in float32."""
    rng, (key_dim, value_dim) = np.random.default_rng(0), sizes
    # Outputs near 1: a cotangent is a function of the output, as it is rounded.
    query, key = rng.normal(size=(2, 1, length, groups, key_dim)) * key_dim**-0.5
    value = rng.normal(size=(1, length, heads, value_dim))
    log_decay = -rng.uniform(0, 0.3, (1, length, heads))
    log_decay[:, 40], log_decay[:, 41] = -1e8, -np.inf
    state = rng.normal(size=(1, heads, key_dim, value_dim))
    arrays = [jnp.asarray(x, dtype) for x in (query, key, value)]
    arrays += [jnp.asarray(x, jnp.float32) for x in (log_decay, state)]
    marks = jnp.zeros((1, length), bool).at[:, list(resets)].set(True)

    def results(form, dtype):
        def total(*given):
            tokens = [x.astype(dtype) for x in given[:3]]
            output, state = form(*tokens, *given[3:], marks)
            output = output.astype(jnp.float32)
            return jnp.sum(jnp.sin(output)) + jnp.sum(jnp.cos(state)), (output, state)

        run = jax.grad(total, argnums=range(5), has_aux=True)
        gradients, outputs = jax.jit(run)(*arrays)
        return outputs, gradients

    def kernel(query, key, value, *rest):
        given = query, key, value, None, *rest
        return ssd_kernel(*given, interpret=emulated.interpret)

    found = results(kernel, dtype)
    emulated.assert_close(found, results(recurrent, "float32"), dtype)


def traced(groups=2, **options):
    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    tokens = 2, 256
    key = array(*tokens, groups, 128, dtype=jnp.bfloat16)
    arguments = key, key, array(*tokens, 4, 64), array(*tokens, 4)
    return str(jax.make_jaxpr(lambda *a: ssd(*a, **options))(*arguments))


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2)])
def test_a_tpu_takes_it_where_it_is_asked_for(on_tpu, sizes):
    with on_tpu(sizes):
        assert "ssd_forward" in traced(implementation="pallas")
        assert "ssd_forward" not in traced(implementation="chunked")
        assert "ssd_forward" not in traced(chunk=64)
    assert "ssd_forward" not in traced()


def test_says_what_the_kernel_cannot_do(on_tpu):
    with on_tpu((2, 2)):
        with pytest.raises(ReslabError, match="chunks of 64 tokens, only of 128"):
            traced(implementation="pallas", chunk=64)
        with pytest.raises(ReslabError, match="1 groups over 2 devices"):
            traced(groups=1, implementation="pallas")
    with pytest.raises(ReslabError, match="platform cpu"):
        traced(implementation="pallas")


def test_a_mixer_passes_the_choice_of_kernels_on(on_tpu):
    x = jax.ShapeDtypeStruct((2, 256, 64), jnp.bfloat16)

    def program(kernels):
        module = Mamba2(heads=2, kernels=kernels, dtype=x.dtype)
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        return str(jax.make_jaxpr(lambda v, x: module.apply(v, x)[0])(variables, x))

    with on_tpu():
        taken = [
            "ssd_forward" in program(kernels)
            for kernels in ("pallas", "auto", "reference")
        ]
    assert taken == [True, True, False]
