"""The gated delta rule, against the authors' numbers and its own properties."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.ops.delta_rule.api import delta_rule
from reslab.ops.delta_rule.chunked import chunked
from reslab.ops.delta_rule.reference import recurrent
from reslab.parallel.mesh import make_mesh, use_mesh

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
NAMES = ("q", "k", "v", "beta", "g", "initial_state")
DECAYS = ("none", "heads", "channels")


def inputs(
    dtype="float32",
    batch=2,
    length=7,
    heads=3,
    key_dim=4,
    value_dim=5,
    decays="heads",
    group=1,
):
    generator = np.random.default_rng(0)
    query, key = generator.normal(size=(2, batch, length, heads // group, key_dim))
    key = key / np.linalg.norm(key, axis=-1, keepdims=True)
    value = generator.normal(size=(batch, length, heads, value_dim))
    beta = generator.uniform(0, 1, (batch, length, heads))
    shape = (key_dim,) if decays == "channels" else ()
    log_decay = -generator.uniform(0, 1, (batch, length, heads, *shape))
    state = generator.normal(size=(batch, heads, key_dim, value_dim))
    arrays = (query, key, value, beta, log_decay, state)
    query, key, value, beta, log_decay, state = (jnp.asarray(x, dtype) for x in arrays)
    given = None if decays == "none" else log_decay
    return [query, key, value, beta, given, state]


def rule(query, key, value, beta, log_decay, state=None, **keywords):
    return delta_rule(query, key, value, beta, log_decay, state=state, **keywords)


def oracle(query, key, value, beta, log_decay, state, resets=None):
    """The update as one matrix product, (I - beta k k^T) diag(a) S + beta k v^T."""
    if log_decay is None:
        log_decay = jnp.zeros(beta.shape)
    query, key, value, beta, log_decay, state = (
        np.float64(x) for x in (query, key, value, beta, log_decay, state)
    )
    group = value.shape[2] // key.shape[2]
    state, output = state.copy(), np.zeros(value.shape)
    for b, t, h in np.ndindex(*beta.shape):
        k, strength = key[b, t, h // group], beta[b, t, h]
        decay = np.exp(log_decay[b, t, h]) * np.ones(len(k))
        memory = decay[:, None] * state[b, h]
        if resets is not None and resets[b, t]:
            memory = np.zeros_like(memory)
        erase = np.eye(len(k)) - strength * np.outer(k, k)
        state[b, h] = erase @ memory + strength * np.outer(k, value[b, t, h])
        output[b, t, h] = query[b, t, h // group] @ state[b, h] / np.sqrt(len(k))
    return output, state


def close(actual, expected, tolerance):
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(np.float64(actual), expected, atol=tolerance * scale)


def golden_of(name):
    with np.load(GOLDENS / f"{name}.npz") as file:
        golden = dict(file)
    if name == "delta_rule":  # (batch, heads, length, ...) there.
        swapped = {"q", "k", "v", "beta", "o"}
        for key, array in golden.items():
            if key.split("_", 1)[1] in swapped:
                golden[key] = np.swapaxes(array, 1, 2)
    return golden


def gate(raw, rate, bias):
    """Log decays of the channels, from a raw gate; as in the authors' layer."""
    step = jax.nn.softplus(raw + bias.reshape(raw.shape[2:])[None, None])
    return -jnp.exp(rate)[None, None, :, None] * step


@pytest.mark.parametrize("chunk", [0, 1, 8])
@pytest.mark.parametrize("name", ["delta_rule", "gated_delta_rule", "kda"])
def test_golden(name, chunk):
    golden = golden_of(name)
    names = [n for n in NAMES if f"in_{n}" in golden]
    extra = ["g_raw", "A_log", "dt_bias"] if name == "kda" else []

    @jax.jit
    def run(given, more):
        if name == "kda":
            given = {**given, "g": gate(*more)}
        return rule(*(given.get(n) for n in NAMES), chunk=chunk)

    given = {n: jnp.asarray(golden[f"in_{n}"]) for n in names}
    more = [jnp.asarray(golden[f"in_{n}"]) for n in extra]
    (output, state), vjp = jax.vjp(run, given, more)
    close(output, golden["out_o"], 1e-5)
    close(state, golden["out_final_state"], 1e-5)
    cotangents = [jnp.asarray(golden[f"cot_{n}"]) for n in ("o", "final_state")]
    gradients, others = vjp(tuple(cotangents))
    for n, gradient in (*gradients.items(), *zip(extra, others, strict=True)):
        close(gradient, golden[f"grad_{n}"], 1e-5)


def test_the_decays_of_the_golden_gates():
    golden = golden_of("kda")
    raw, rate, bias = (golden[f"in_{n}"] for n in ("g_raw", "A_log", "dt_bias"))
    close(gate(raw, rate, bias), golden["gate_log_decay"], 1e-6)
    inside = np.exp(rate)[:, None] * (raw + bias.reshape(raw.shape[2:]))
    close(-5 * jax.nn.sigmoid(inside), golden["gate_lowerbound_m5"], 1e-6)


@pytest.mark.parametrize(
    ("decays", "group"), [("none", 1), ("heads", 1), ("channels", 1), ("channels", 3)]
)
@pytest.mark.parametrize("implementation", ["chunked", "recurrent"])
def test_equals_numpy_in_float64(implementation, decays, group):
    with jax.enable_x64(True):
        arrays = inputs("float64", decays=decays, group=group)
        resets = np.random.default_rng(1).random((2, 7)) < 0.3
        output, state = rule(
            *arrays, resets=jnp.asarray(resets), implementation=implementation
        )
        assert output.dtype == state.dtype == jnp.float64
    for actual, expected in zip(
        (output, state), oracle(*arrays, resets=resets), strict=True
    ):
        close(actual, expected, 1e-12)


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("is_alike", [False, True])
@pytest.mark.parametrize("size", [1, 8, 32])
def test_chunks_are_one_token_after_the_other(size, is_alike, decays):
    """Forward and backward, for lengths that no chunk divides, with resets."""
    with jax.enable_x64(True):
        *arrays, state = inputs("float64", length=37, decays=decays)
        if is_alike:
            key = arrays[1] + 3.0
            arrays[1] = key / jnp.linalg.norm(key, axis=-1, keepdims=True)
            arrays[3] = jnp.full_like(arrays[3], 0.95)
        resets = jnp.asarray(np.random.default_rng(1).random((2, 37)) < 0.1)
        weights = np.random.default_rng(2).normal(size=arrays[2].shape)

        def results(form, *options):
            def total(*arrays):
                output, final = form(*arrays, resets, *options)
                return jnp.sum(weights * output) + jnp.sum(jnp.sin(final)), output

            known = [n for n, x in enumerate((*arrays, state)) if x is not None]
            return jax.jit(jax.grad(total, argnums=known, has_aux=True))(*arrays, state)

        found, wanted = results(chunked, size), results(recurrent)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            close(a, b, 1e-12)


def errors(log_decay, resets=None):
    """Of the chunked form in float32, beside the recurrent form in float64.

    Returns:
      The largest of output and memory, and of the gradients by everything, relative to
      the largest value of each row.
    """
    log_decay = np.asarray(log_decay, np.float32)

    def results(form, dtype):
        arrays = inputs(dtype, *log_decay.shape[:3])
        arrays[4] = jnp.asarray(log_decay, dtype)
        weights = np.random.default_rng(2).normal(size=arrays[2].shape)

        def total(*arrays):
            output, final = form(*arrays, resets)
            seen = jnp.sum(jnp.asarray(weights, dtype) * output)
            return seen + jnp.sum(jnp.sin(final)), (output, final)

        run = jax.jit(jax.grad(total, argnums=range(6), has_aux=True))
        gradients, outputs = run(*arrays)
        return jax.tree.map(np.asarray, (outputs, gradients))

    found = results(chunked, "float32")
    with jax.enable_x64(True):
        wanted = results(recurrent, "float64")

    def error(one, other):
        axes = tuple(range(1, one.ndim))
        scale = np.max(np.abs(other), axes)
        # Smaller ones leave the range of float32.
        return np.max(np.max(np.abs(one - other), axes) / np.maximum(scale, 1e-30))

    return [max(map(error, *pair)) for pair in zip(found, wanted, strict=True)]


# Without strong decays the errors are 3e-7 and 1.3e-6.
FORWARD, BACKWARD = 1e-6, 2e-6
# What a channel that never decays held is erased by writes alone, down to 1e-4 here.
BACKWARD_OF_ERASED = 1e-5
BACKWARDS = {"heads": BACKWARD, "channels": BACKWARD_OF_ERASED}


def per_channel(log_decay):
    """Decays of channels beside those of heads: other ones, or none, in each."""
    factor = np.array([1.0, 0.3, 2.0, 1.0])
    spread = log_decay[..., None] * factor
    spread[..., 3] = -0.02
    return spread


@pytest.mark.parametrize("decays", DECAYS[1:])
def test_what_follows_a_strong_decay_is_exact(decays):
    kinds = list(
        itertools.product((-1e2, -1e4, -1e6, -1e7, -1e8, -np.inf), (0, 10, 63, 64))
    )
    log_decay = np.full((len(kinds), 70, 1), -0.05)
    for row, (forget, token) in enumerate(kinds):
        log_decay[row, token] = forget
    if decays == "channels":
        log_decay = per_channel(log_decay)
    forward, backward = errors(log_decay)
    assert forward < FORWARD and backward < BACKWARDS[decays]


@pytest.mark.parametrize("decays", DECAYS[1:])
@pytest.mark.parametrize("has_resets", [False, True])
def test_drawn_decays_of_any_strength(has_resets, decays):
    draw = np.random.default_rng(0)
    shape = 24, 80, 2
    low, high = np.sort(draw.uniform(-4, 9, (2, 24)), axis=0)[:, :, None, None]
    log_decay = -(10.0 ** draw.uniform(low, high, shape))
    log_decay[draw.random(shape) < 0.1] = 0
    log_decay[draw.random(shape) < draw.choice([0, 0.1], (24, 1, 1))] = -np.inf
    if decays == "channels":
        log_decay = per_channel(log_decay)
    resets = jnp.asarray(draw.random((24, 80)) < 0.05) if has_resets else None
    forward, backward = errors(log_decay, resets)
    assert forward < FORWARD and backward < BACKWARDS[decays]


@pytest.mark.parametrize("decays", DECAYS[1:])
def test_decays_of_one_strength(decays):
    strengths = np.array([0, -0.05, -1, -5, -20, -80])
    log_decay = np.tile(strengths[:, None, None], (1, 128, 1))
    if decays == "channels":
        log_decay = per_channel(log_decay)
    forward, backward = errors(log_decay)
    assert forward < FORWARD and backward < BACKWARDS[decays]


def test_products_of_three_passes_are_good_to_more_than_bfloat16(monkeypatch):
    """What a TPU makes of inputs in bfloat16, emulated."""
    passes = []

    def halves(x):
        high = jax.lax.reduce_precision(x, 8, 7)
        return high, jax.lax.reduce_precision(x - high, 8, 7)

    def product(equation, one, other, precision=jax.lax.Precision.HIGHEST):
        passes.append(precision)
        if precision == jax.lax.Precision.HIGHEST:
            return jnp.einsum(equation, one, other)
        (a, b), (c, d) = halves(one), halves(other)
        pairs = (a, c), (a, d), (b, c)
        return sum(jnp.einsum(equation, *pair) for pair in pairs)

    monkeypatch.setattr("reslab.ops.delta_rule.chunked._product", product)
    *arrays, _, _, state = inputs("bfloat16", length=256, key_dim=16, value_dim=32)
    *_, beta, log_decay, _ = inputs("float32", length=256, key_dim=16, value_dim=32)
    found = jax.jit(chunked)(
        *(x.astype(jnp.bfloat16) for x in arrays), beta, log_decay / 50, state, None
    )
    assert jax.lax.Precision.HIGH in passes
    wanted = oracle(*arrays, beta, log_decay / 50, state)
    # The memory is not rounded at the end, and shows what products lose.
    close(found[1], wanted[1], 2**-14)
    close(found[0], wanted[0], 2**-8)


@pytest.mark.conformance
@pytest.mark.optimized
def test_long_sequences_keep_the_memory_once_a_chunk():
    arrays = inputs(length=1024, heads=1, key_dim=64, value_dim=128)

    def temporaries(implementation):
        def loss(*arrays):
            return jnp.sum(rule(*arrays, implementation=implementation)[0])

        compiled = jax.jit(jax.grad(loss, argnums=range(6))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("chunked") < 0.5 * temporaries("recurrent")


def test_one_token_at_a_time_is_the_whole():
    *tokens, state = inputs(length=20)
    output, final = rule(*tokens, state)
    step = jax.jit(rule)
    for t in range(output.shape[1]):
        y, state = step(*(x[:, t : t + 1] for x in tokens), state)
        np.testing.assert_allclose(y[:, 0], output[:, t], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, final, rtol=1e-5, atol=1e-6)


def test_a_split_sequence_is_the_whole():
    *tokens, state = inputs()
    output, final = rule(*tokens, state)
    first, middle = rule(*(x[:, :3] for x in tokens), state)
    second, last = rule(*(x[:, 3:] for x in tokens), middle)
    joined = jnp.concatenate([first, second], axis=1)
    np.testing.assert_allclose(joined, output, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, final, rtol=1e-5, atol=1e-6)


def test_a_reset_separates_documents():
    *tokens, state = inputs()
    resets = jnp.zeros((2, 7), bool).at[:, 4].set(True)
    output, final = rule(*tokens, state, resets=resets)
    alone, last = rule(*(x[:, 4:] for x in tokens))
    np.testing.assert_allclose(output[:, 4:], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(final, last, rtol=1e-5, atol=1e-6)

    def second_document(value, state):
        return jnp.sum(rule(*tokens[:2], value, *tokens[3:], state, resets=resets)[1])

    value_bar, state_bar = jax.grad(second_document, (0, 1))(tokens[2], state)
    assert not np.any(value_bar[:, :4]) and not np.any(state_bar)
    assert np.all(np.any(value_bar[:, 4:], axis=(2, 3)))


def test_later_tokens_change_nothing_before():
    *tokens, state = inputs()
    output, _ = rule(*tokens, state)
    changed, _ = rule(*(x.at[:, 5].add(0.1) for x in tokens), state)
    np.testing.assert_array_equal(changed[:, :5], output[:, :5])
    assert np.all(np.any(changed[:, 5:] != output[:, 5:], axis=(2, 3)))


@pytest.mark.parametrize("decays", DECAYS)
def test_devices_that_share_rows_pass_memories_on(decays):
    """From a state, with resets, some devices without any; output, state, gradients."""
    arrays = inputs(length=32, heads=4, group=2, decays=decays)
    resets = jnp.zeros((2, 32), bool).at[0, 5].set(True).at[1, 24].set(True)
    known = [n for n, x in enumerate(arrays) if x is not None]

    def total(*arrays):
        output, state = rule(*arrays, resets=resets, chunk=4)
        return jnp.sum(jnp.sin(output)) + jnp.sum(jnp.cos(state)), (output, state)

    compute = jax.grad(total, argnums=known, has_aux=True)
    wanted = jax.jit(compute)(*arrays)
    with use_mesh(make_mesh({"data": 2, "sequence": 4})):
        found = jax.jit(compute)(*arrays)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        close(one, other, 1e-5)


def test_orthonormal_keys_recall_exactly():
    *_, value, _, _, _ = inputs(length=4)
    key = jnp.broadcast_to(jnp.eye(4)[None, :, None], (2, 4, 3, 4))
    one = jnp.ones((2, 4, 3))
    _, state = rule(key, key, value, one, 0 * one)
    np.testing.assert_allclose(jnp.swapaxes(state, 1, 2), value, rtol=1e-6)


def test_without_writes_the_memory_decays():
    query, key, value, beta, log_decay, state = inputs()
    _, final = rule(query, key, value, 0 * beta, log_decay, state)
    decay = jnp.exp(jnp.sum(log_decay, axis=1))
    np.testing.assert_allclose(final, decay[:, :, None, None] * state, rtol=1e-5)


def test_bfloat16_keeps_a_float32_memory():
    arrays = inputs("bfloat16")
    output, state = rule(*arrays)
    assert output.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    expected = oracle(*arrays)
    close(output, expected[0], 1e-2)
    close(state, expected[1], 1e-5)
    gradient = jax.grad(lambda x: jnp.sum(rule(x, *arrays[1:])[0]))(arrays[0])
    assert gradient.dtype == jnp.bfloat16 and np.all(np.isfinite(gradient))


def test_bad_input_is_one_line():
    *tokens, state = inputs()
    for call, text in (
        (lambda: rule(*tokens, state[:1]), r"state: expected shape \(2, 3, 4, 5\)"),
        (lambda: rule(*tokens[:3], tokens[3][:1], tokens[4]), "beta: expected shape"),
        (lambda: rule(*tokens, resets=jnp.zeros(7, bool)), "resets: expected shape"),
        (lambda: rule(tokens[0][0], *tokens[1:]), "query: expected"),
        (
            lambda: rule(*(x[:, :, :2] for x in tokens[:2]), *tokens[2:]),
            "multiple of 2",
        ),
        (lambda: rule(*tokens, chunk=12), "chunk: expected a power of two"),
        (lambda: rule(*tokens, chunk=8, inverse="neuman"), "'neumann'"),
        (lambda: rule(*tokens, implementation="chunk"), "'chunked'"),
    ):
        with pytest.raises(ReslabError, match=text):
            call()
