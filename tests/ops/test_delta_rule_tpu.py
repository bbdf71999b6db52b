"""The delta rule's kernels: against the definition, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.mixers.gated_delta import GatedDelta
from reslab.ops.delta_rule.api import delta_rule
from reslab.ops.delta_rule.pallas_tpu import delta_rule_kernel
from reslab.ops.delta_rule.reference import recurrent


def inputs(length, heads, key_dim, value_dim, decays, dtype):
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, length, heads, key_dim))
    # Keys that are partly alike, so that there is something to invert.
    key = key + 1.0
    key = key / np.linalg.norm(key, axis=-1, keepdims=True)
    value = rng.normal(size=(1, length, heads, value_dim))
    tokens = [jnp.asarray(x, dtype) for x in (query, key, value)]
    beta = rng.uniform(0, 1, (1, length, heads))
    channels = (key_dim,) if decays == "channels" else ()
    log_decay = -rng.uniform(0, 0.3, (1, length, heads, *channels))
    log_decay[:, 40], log_decay[:, 41] = -1e8, -np.inf
    state = rng.normal(size=(1, heads, key_dim, value_dim))
    lines = [jnp.asarray(x, jnp.float32) for x in (beta, log_decay, state)]
    return [*tokens, lines[0], lines[1] if decays else None, lines[2]]


@pytest.mark.parametrize(
    ("sizes", "decays", "resets", "dtype"),
    [
        ((130, 2, 24, 40), "heads", (20, 60), "float32"),
        pytest.param(
            *((260, 1, 16, 8), "", (129,), "float32"), marks=pytest.mark.conformance
        ),
        pytest.param(
            *((130, 2, 24, 40), "channels", (20, 60), "float32"),
            marks=pytest.mark.conformance,
        ),
        pytest.param(
            *((130, 1, 16, 8), "channels", (129,), "bfloat16"),
            marks=pytest.mark.conformance,
        ),
        pytest.param(
            *((130, 3, 16, 24), "heads", (), "bfloat16"), marks=pytest.mark.conformance
        ),
    ],
)
def test_the_kernel_is_the_definition(emulated, sizes, decays, resets, dtype):
    """Output, memory and gradients; the definition in float32."""
    arrays = inputs(*sizes, decays, dtype)
    marks = jnp.zeros((1, sizes[0]), bool).at[:, list(resets)].set(True)
    known = [n for n, x in enumerate(arrays) if x is not None]

    def results(form, dtype, **options):
        def total(*given):
            tokens = [x.astype(dtype) for x in given[:3]]
            output, state = form(*tokens, *given[3:], marks, **options)
            output = output.astype(jnp.float32)
            return jnp.sum(jnp.sin(output)) + jnp.sum(jnp.cos(state)), (output, state)

        gradients, outputs = jax.jit(jax.grad(total, argnums=known, has_aux=True))(
            *arrays
        )
        return outputs, gradients

    found = results(delta_rule_kernel, dtype, interpret=emulated.interpret)
    emulated.assert_close(found, results(recurrent, "float32"), dtype)


def shapes(key_dim=128, value_dim=128, decays=(), dtype=jnp.bfloat16, batch=2):
    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    tokens = batch, 256, 4
    key = array(*tokens, key_dim, dtype=dtype)
    value = array(*tokens, value_dim, dtype=dtype)
    return key, key, value, array(*tokens), array(*tokens, *decays)


def traced(arguments, **options):
    return str(jax.make_jaxpr(lambda *a: delta_rule(*a, **options))(*arguments))


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2)])
def test_a_tpu_takes_it_where_it_is_asked_for(on_tpu, sizes):
    with on_tpu(sizes):
        assert "delta_rule_forward" in traced(shapes(), implementation="pallas")
        assert "delta_rule_of_channels_forward" in traced(
            shapes(decays=(128,)), implementation="pallas"
        )
        assert "delta_rule_forward" not in traced(shapes(), chunk=64)
        assert "delta_rule_forward" not in traced(shapes(), implementation="chunked")
    assert "delta_rule_forward" not in traced(shapes())


@pytest.mark.parametrize(
    ("options", "fields", "words"),
    [
        ({}, {"key_dim": 512, "value_dim": 1024}, "does not fit the 15 MiB of VMEM"),
        ({"chunk": 64}, {}, "chunks of 64 tokens, only of 128"),
        ({}, {"key_dim": 256, "value_dim": 512, "decays": (256,)}, "does not fit"),
        ({}, {"batch": 3}, "batch 3 over 2 devices"),
    ],
)
def test_says_what_the_kernel_cannot_do(on_tpu, options, fields, words):
    with on_tpu((2, 2)), pytest.raises(ReslabError, match=words):
        traced(shapes(**fields), implementation="pallas", **options)


def test_needs_a_tpu():
    with pytest.raises(ReslabError, match="platform cpu"):
        traced(shapes(), implementation="pallas")


def test_a_mixer_passes_the_choice_of_kernels_on(on_tpu):
    x = jax.ShapeDtypeStruct((2, 256, 64), jnp.bfloat16)

    def program(kernels):
        module = GatedDelta(heads=2, head_dim=32, kernels=kernels, dtype=x.dtype)
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        return str(jax.make_jaxpr(lambda v, x: module.apply(v, x)[0])(variables, x))

    with on_tpu():
        taken = [
            "delta_rule_forward" in program(kernels)
            for kernels in ("pallas", "reference")
        ]
    assert taken == [True, False]
    with pytest.raises(ReslabError, match="platform cpu"):
        program("pallas")
