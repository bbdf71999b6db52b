"""Mixed streams: definition, kernel against it, refusals."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from reslab.core.errors import ReslabError
from reslab.nn.residuals._streams import pass_through
from reslab.ops.stream_mix import pallas_tpu
from reslab.ops.stream_mix.api import stream_mix
from reslab.ops.stream_mix.reference import reference_stream_mix


def both_ways(run, arguments, cotangents):
    """What a function returns, and its gradients."""

    def gradients(*arguments):
        outputs, pull = jax.vjp(run, *arguments)
        return outputs, pull(cotangents)

    return jax.jit(gradients)(*arguments)


def test_is_what_hyper_connections_do(emulated):
    *streams, output = emulated.arrays([(2, 3, 8)] * 4)
    (weights,) = emulated.arrays([(15,)], seed=1)
    mix, write, read = weights[:9].reshape(3, 3), weights[9:12], weights[12:]
    expected = pass_through(
        tuple(streams), lambda h: output, read=read, mix=mix, write=write
    )
    new, reading = stream_mix(streams, output, weights)
    emulated.assert_close(new, expected)
    emulated.assert_close(reading, sum(r * h for r, h in zip(read, new, strict=True)))


def test_what_is_not_read_has_no_weights(emulated):
    *streams, output = emulated.arrays([(2, 3, 8)] * 3)
    (weights,) = emulated.arrays([(8,)], seed=1)
    expected, _ = stream_mix(streams, output, weights)
    new, reading = stream_mix(streams, output, weights[:6])
    assert reading is None
    emulated.assert_close(new, expected)


CASES = [
    (2, (3, 11, 200), False, True, "float32"),
    (4, (1, 1, 128), True, True, "float32"),
    (4, (2, 9, 256), True, True, "float32"),
    (4, (1, 300, 256), False, True, "bfloat16"),  # Several blocks, the last not full.
    (3, (2, 20, 128), True, True, "bfloat16"),
    (2, (3, 11, 200), True, False, "float32"),
    (4, (1, 30, 128), False, False, "bfloat16"),
]


@pytest.mark.parametrize("count, shape, is_of_token, is_read, dtype", CASES, ids=str)
def test_the_kernel_equals_the_reference(
    emulated, count, shape, is_of_token, is_read, dtype
):
    arrays = emulated.arrays([shape] * (2 * count + 1 + is_read), dtype)
    *streams, output = arrays[: count + 1]
    size = count * count + count + count * is_read
    (weights,) = emulated.arrays([(*shape[:-1] * is_of_token, size)], seed=1)
    interpret = emulated.interpret if shape == (2, 9, 256) else True

    def kernel(streams, output, weights):
        return pallas_tpu.stream_mix(streams, output, weights, interpret)

    arguments = (tuple(streams), output, weights)
    got = both_ways(kernel, arguments, tuple(arrays[count + 1 :]))
    expected = both_ways(
        lambda *a: reference_stream_mix(*a), arguments, tuple(arrays[count + 1 :])
    )
    emulated.assert_close(got, expected, dtype)


@pytest.mark.parametrize("is_of_token", [False, True])
@pytest.mark.parametrize("last", ["tensor", "sequence"])
def test_devices_share_the_batch(emulated, last, is_of_token):
    arrays = emulated.arrays([(8, 4, 128)] * 6)
    (weights,) = emulated.arrays([(8, 4, 8)[2 - 2 * is_of_token :]], seed=1)

    def run(streams, output, weights):
        return pallas_tpu.stream_mix(streams, output, weights, True)

    arguments = (tuple(arrays[:2]), arrays[2], weights), tuple(arrays[3:])
    expected = both_ways(run, *arguments)
    kinds = (AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", last), axis_types=kinds)
    with jax.set_mesh(mesh):
        got = both_ways(run, *arguments)
    emulated.assert_close(got, expected)


def test_the_kernel_names_its_limit(on_tpu):
    x = jax.ShapeDtypeStruct((2, 4, 20_000), jnp.bfloat16)
    weights = jax.ShapeDtypeStruct((24,), jnp.float32)

    def run(x, weights, **keywords):
        return stream_mix((x,) * 4, x, weights, **keywords)

    with on_tpu():
        message = r"4 streams of width 20000, the widest is \d+"
        with pytest.raises(ReslabError, match=message):
            jax.eval_shape(lambda *a: run(*a, implementation="pallas"), x, weights)
        jax.eval_shape(run, x, weights)  # "auto" never fails.


def test_bad_input_is_one_line():
    x = jnp.ones((2, 8))
    for arguments, keywords, message in [
        (((x, x[:1]), x, jnp.ones(8)), {}, "streams and output"),
        (((x, x), x, jnp.ones(7)), {}, r"expected \(8,\), or \(2, 8\); or 6 of them"),
        (((x, x), x, jnp.ones(8)), {"implementation": "pallas"}, "platform cpu"),
    ]:
        with pytest.raises(ReslabError, match=message):
            stream_mix(*arguments, **keywords)
