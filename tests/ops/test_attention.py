"""Attention: every implementation against loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from reslab.core.errors import ReslabError
from reslab.core.platform import platform
from reslab.ops.attention import api
from reslab.ops.attention.api import IMPLEMENTATIONS, attention
from reslab.ops.attention.splash import splash

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
CASES = {
    "causal": {},
    "full": {"is_causal": False},
    "window": {"window": 3},
    "window_of_one": {"window": 1},
    "full_window": {"is_causal": False, "window": 3},
    "segments": {"segments": True},
    "segments_window": {"segments": True, "window": 3},
    "full_segments": {"segments": True, "is_causal": False},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 1.5},
    "softcap_segments_window": {"softcap": 1.5, "segments": True, "window": 4},
    "offset": {"query_offset": 3},
    "offset_window": {"query_offset": 3, "window": 4},
    "offset_softcap": {"query_offset": 3, "softcap": 1.5},
}


def inputs(dtype="float32", batch=2, length=8, keys=None, heads=4, kv_heads=2, dim=6):
    generator = np.random.default_rng(0)
    key_shape = (batch, keys or length, kv_heads, dim)
    query = generator.normal(size=(batch, length, heads, dim))
    key, value = generator.normal(size=(2, *key_shape))
    return [jnp.asarray(x, dtype) for x in (query, key, value)]


def prepare(case, dtype="float32"):
    options = dict(CASES[case])
    keys = 12 if "query_offset" in options else 8
    if options.get("segments"):
        segments = [[1, 1, 1, 2, 2, 2, 2, 3], [4, 4, 5, 5, 5, 5, 5, 5]]
        options["segments"] = jnp.asarray(segments, jnp.int32)
    return inputs(dtype, keys=keys), options


def oracle(
    query,
    key,
    value,
    segments=None,
    query_offset=0,
    is_causal=True,
    window=None,
    softcap=None,
    scale=None,
):
    """One query and one key at a time, in float64."""
    query, key, value = (np.float64(x) for x in (query, key, value))
    batch, length, heads, dim = query.shape
    group = heads // key.shape[2]
    output = np.zeros(query.shape)
    for b, i, h in np.ndindex(batch, length, heads):
        place = i + query_offset
        weights = np.zeros(key.shape[1])
        for j in range(key.shape[1]):
            if is_causal and j > place:
                continue
            if window is not None and place - j >= window:
                continue
            if segments is not None and segments[b, i] != segments[b, j]:
                continue
            score = query[b, i, h] @ key[b, j, h // group]
            score *= dim**-0.5 if scale is None else scale
            if softcap is not None:
                score = softcap * np.tanh(score / softcap)
            weights[j] = np.exp(score)
        output[b, i, h] = weights @ value[b, :, h // group] / weights.sum()
    return output


def close(actual, expected, tolerance):
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(
        np.float64(actual), np.float64(expected), atol=tolerance * scale
    )


def gradients(function, arrays, cotangent):
    return jax.jit(lambda *x: jax.vjp(function, *x)[1](cotangent))(*arrays)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_equals_numpy(implementation, case, dtype):
    with jax.enable_x64(dtype == "float64"):
        arrays, options = prepare(case, dtype)
        if implementation == "xla" and ("softcap" in options or dtype == "float64"):
            with pytest.raises(ReslabError, match="'xla' does not support"):
                attention(*arrays, **options, implementation=implementation)
            return
        output = jax.jit(
            lambda *x: attention(*x, **options, implementation=implementation)
        )(*arrays)
    assert output.dtype == dtype
    close(output, oracle(*arrays, **options), TOLERANCE[dtype])


@pytest.mark.parametrize("case", [c for c in CASES if "softcap" not in c])
def test_xla_has_the_reference_gradients(case):
    arrays, options = prepare(case)
    cotangent = jnp.cos(jnp.arange(arrays[0].size)).reshape(arrays[0].shape)
    xla, reference = (
        gradients(
            lambda *x, i=i: attention(*x, **options, implementation=i),
            arrays,
            cotangent,
        )
        for i in ("xla", "reference")
    )
    for a, e in zip(xla, reference, strict=True):
        close(a, e, 1e-5)


@pytest.mark.parametrize("case", ["causal", "softcap_segments_window", "offset"])
def test_reference_gradients_are_slopes(case):
    with jax.enable_x64(True):
        arrays, options = prepare(case, "float64")
        generator = np.random.default_rng(1)
        cotangent = generator.normal(size=arrays[0].shape)
        bars = gradients(
            lambda *x: attention(*x, **options, implementation="reference"),
            arrays,
            jnp.asarray(cotangent),
        )
        for index, bar in enumerate(bars):
            direction = generator.normal(size=bar.shape)
            ends = []
            for sign in (1, -1):
                moved = list(arrays)
                moved[index] = moved[index] + sign * 1e-5 * direction
                ends.append(np.sum(cotangent * oracle(*moved, **options)))
            slope = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(np.sum(bar * direction), slope, rtol=1e-7)


@pytest.mark.parametrize("implementation", ["auto", "reference", "xla"])
def test_decoding_with_a_traced_offset_is_the_whole(implementation):
    query, key, value = inputs()
    whole = attention(query, key, value, window=5)

    @jax.jit
    def step(offset):
        now = jax.lax.dynamic_slice_in_dim(query, offset, 2, axis=1)
        return attention(
            now,
            key,
            value,
            query_offset=offset,
            window=5,
            implementation=implementation,
        )

    for offset in range(0, 8, 2):
        close(step(offset), whole[:, offset : offset + 2], 1e-6)


def test_under_scan():
    query, key, value = inputs()

    def layer(x, _):
        return attention(x, key, value), None

    scanned, _ = jax.lax.scan(layer, query, length=3)
    unrolled = query
    for _ in range(3):
        unrolled = attention(unrolled, key, value)
    close(scanned, unrolled, 1e-6)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_bfloat16_is_the_rounded_truth(implementation):
    arrays = inputs("bfloat16")
    output = attention(*arrays, implementation=implementation)
    assert output.dtype == jnp.bfloat16
    close(output, oracle(*arrays), 2e-2)
    large = [1e4 * x for x in arrays]
    # JAX cannot lower its own gradient in bfloat16 under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        bars = gradients(
            lambda *x: attention(*x, implementation=implementation), large, output
        )
    assert all(x.dtype == jnp.bfloat16 and np.all(np.isfinite(x)) for x in bars)


SPLASH_CASES = {
    "causal": {},
    "full": {"is_causal": False},
    "window": {"window": 100},
    "softcap": {"softcap": 1.5},
    "segments": {"segments": True},
    "segments_window": {"segments": True, "window": 100},
}


@pytest.mark.parametrize("case", SPLASH_CASES)
def test_splash_equals_the_reference(case):
    arrays = inputs(batch=1, length=256, heads=2, kv_heads=1, dim=64)
    options = {"is_causal": True, "window": None, "softcap": None, "segments": None}
    options |= SPLASH_CASES[case]
    if options["segments"]:
        options["segments"] = (jnp.arange(256)[None] >= 90).astype(jnp.int32)
    cotangent = jnp.cos(jnp.arange(arrays[0].size)).reshape(arrays[0].shape)

    def reference(*x):
        return attention(*x, **options, implementation="reference")

    def kernel(*x):
        return splash(*x, **options, scale=64**-0.5, interpret=True)

    close(jax.jit(kernel)(*arrays), reference(*arrays), 1e-5)
    for a, e in zip(
        gradients(kernel, arrays, cotangent),
        gradients(reference, arrays, cotangent),
        strict=True,
    ):
        close(a, e, 1e-5)


def test_splash_over_a_mesh_equals_the_reference():
    arrays = inputs(batch=4, length=128, heads=4, kv_heads=2, dim=64)
    segments = jnp.broadcast_to(jnp.arange(128) // 50, (4, 128)).astype(jnp.int32)
    cotangent = jnp.ones(arrays[0].shape)

    def kernel(*x):
        return splash(
            *x,
            segments=segments,
            is_causal=True,
            window=None,
            softcap=None,
            scale=0.125,
            interpret=True,
        )

    expected = gradients(lambda *x: attention(*x, segments=segments), arrays, cotangent)
    mesh = jax.make_mesh(
        (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )
    with jax.set_mesh(mesh):
        actual = gradients(kernel, arrays, cotangent)
    for a, e in zip(actual, expected, strict=True):
        close(a, e, 1e-5)


def divided(batch=1, sequence=4, tensor=2):
    sizes, names = (batch, sequence, tensor), ("data", "sequence", "tensor")
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": False},
        {"segments": True},
        {"window": 3, "softcap": 1.5},
        {"segments": True, "window": 5},
    ],
    ids=str,
)
def test_divided_tokens_attend_as_whole_rows(options, dtype, x64):
    arrays = inputs(dtype, batch=2, length=16)
    options = dict(options)
    if options.pop("segments", False):
        segments = jnp.arange(16, dtype=jnp.int32)
        options["segments"] = jnp.stack([segments // 5, segments // 11])
    cotangent = jnp.cos(jnp.arange(arrays[0].size)).reshape(arrays[0].shape)
    cotangent = cotangent.astype(dtype)

    def run(*x):
        return attention(*x, **options)

    expected = gradients(run, arrays, cotangent)
    expected = [jax.jit(run)(*arrays), *expected]
    with jax.set_mesh(divided()):
        text = str(jax.make_jaxpr(run)(*arrays))
        actual = [jax.jit(run)(*arrays), *gradients(run, arrays, cotangent)]
    assert "shard_map" in text and "f64[2,4,2,6]" in text.replace("f32", "f64")
    for a, e in zip(actual, expected, strict=True):
        close(a, e, {"float32": 1e-5, "float64": 1e-10}[dtype])


def test_what_cannot_be_divided_is_left_to_the_compiler():
    for arrays, options in (
        (inputs(length=6), {}),
        (inputs(batch=3), {}),
        (inputs(length=4, keys=8), {"query_offset": 4}),
        (inputs(), {"first_key": 2}),
    ):
        expected = attention(*arrays, **options)
        with jax.set_mesh(divided(batch=2, tensor=1)):
            run = jax.jit(lambda *x, options=options: attention(*x, **options))
            assert "shard_map" not in str(jax.make_jaxpr(run)(*arrays))
            close(run(*arrays), expected, 1e-6)


@pytest.mark.parametrize("window", [None, 200])
def test_splash_over_divided_tokens_equals_the_reference(window):
    arrays = inputs(batch=2, length=512, heads=2, kv_heads=2, dim=64)
    segments = jnp.broadcast_to(jnp.arange(512) // 300, (2, 512)).astype(jnp.int32)
    cotangent = jnp.cos(jnp.arange(arrays[0].size)).reshape(arrays[0].shape)
    mask = {"segments": segments, "window": window, "is_causal": True}

    def kernel(*x):
        return splash(*x, **mask, softcap=None, scale=0.125, interpret=True)

    expected = gradients(lambda *x: attention(*x, **mask), arrays, cotangent)
    with jax.set_mesh(divided(batch=2, sequence=2)):
        actual = gradients(kernel, arrays, cotangent)
    for a, e in zip(actual, expected, strict=True):
        close(a, e, 1e-5)
    match = r"length 512, .* on each of 8 devices"
    mesh = divided(sequence=8, tensor=1)
    with jax.set_mesh(mesh), pytest.raises(ReslabError, match=match):
        attention(*arrays, implementation="splash")


def test_platform_is_that_of_the_mesh():
    assert platform() == jax.default_backend()
    assert jax.jit(lambda: len(platform()))() == len(jax.default_backend())
    device = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu"
    cpu = Mesh(np.asarray(jax.devices("cpu")[:1]), ("data",))
    with jax.set_mesh(cpu):
        assert platform() == "cpu"


@pytest.mark.parametrize(
    "options, on_tpu, on_gpu",
    [
        ({}, "splash", "xla"),
        ({"softcap": 30.0}, "splash", "reference"),
        ({"query_offset": 2}, "xla", "xla"),
        ({"query_offset": 2, "softcap": 30.0}, "reference", "reference"),
    ],
)
def test_auto_takes_what_the_platform_is_good_at(monkeypatch, options, on_tpu, on_gpu):
    arrays = inputs(length=128, keys=128, dim=64)
    taken = []
    for name, target in (
        ("splash", "splash"),
        ("_xla", "xla"),
        ("reference_attention", "reference"),
    ):
        monkeypatch.setattr(
            api, name, lambda *_, target=target, **__: taken.append(target)
        )
    for name in ("tpu", "gpu", "cpu"):
        monkeypatch.setattr(api, "platform", lambda name=name: name)
        attention(*arrays, **options)
    assert taken == [on_tpu, on_gpu, "reference"]


def test_auto_on_a_cpu_spares_the_copies_of_grouped_keys(monkeypatch):
    taken = []
    monkeypatch.setattr(api, "_xla", lambda *_, **__: taken.append("xla"))
    query, key, value = inputs()
    attention(query[:, -1:], key, value, query_offset=7)
    assert taken == ["xla"]
    attention(query[:, -1:, :2], key, value, query_offset=7)
    assert taken == ["xla"]


def test_splash_refuses_by_name():
    def refuse(text, query, key, value, **options):
        with pytest.raises(ReslabError, match=f"'splash' does not support {text}"):
            attention(query, key, value, **options, implementation="splash")

    refuse("length 8, which 128 does not divide", *inputs())
    refuse("queries that continue a cache", *inputs(length=128), query_offset=1)
    refuse("queries that continue a cache", *inputs(length=128, keys=256))
    refuse("dtype float16", *inputs("float16", length=128))
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        refuse("batch 2 over 4 devices", *inputs(length=128))
        refuse("heads 4 and 1 over 2 devices", *inputs(batch=4, length=128, kv_heads=1))


def test_bad_input_is_one_line():
    query, key, value = inputs()
    segments = jnp.zeros((2, 8), jnp.int32)
    for call, text in (
        (lambda: attention(query[0], key, value), "query: expected"),
        (lambda: attention(query[:, :, :3], key, value), "a divisor of 3, 6"),
        (lambda: attention(query, key, value[:, :4]), "value: expected"),
        (lambda: attention(query, key, value.astype(jnp.bfloat16)), "dtypes: expected"),
        (lambda: attention(query, key, value, window=0), "window: expected at least 1"),
        (
            lambda: attention(query, key, value, segments=segments[:, :4]),
            r"segments: expected shape \(2, 8\)",
        ),
        (
            lambda: attention(query, key[:, :4], value[:, :4], segments=segments),
            "segments: expected equally many keys and queries",
        ),
        (
            lambda: attention(query, key, value, implementation="splsh"),
            "try: 'splash'",
        ),
    ):
        with pytest.raises(ReslabError, match=text):
            call()
    assert set(IMPLEMENTATIONS) == {"auto", "reference", "xla", "splash"}


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_values_may_be_narrower_than_keys(implementation):
    query, key, value = np.random.default_rng(0).normal(size=(3, 1, 5, 2, 4))
    query, key, value = (jnp.asarray(a, jnp.float32) for a in (query, key, value))
    run = functools.partial(attention, implementation=implementation)
    whole, narrow = run(query, key, value), run(query, key, value[..., :3])
    np.testing.assert_allclose(narrow, whole[..., :3], rtol=1e-5, atol=1e-6)
    with pytest.raises(ReslabError, match="or narrower"):
        run(query, key, jnp.concatenate([value, value], -1))
