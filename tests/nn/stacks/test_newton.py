"""Layers in parallel against the authors' correction, and where it is exact."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES, total_loss
from reslab.core.parameters import parameter
from reslab.core.randomness import DROPOUT
from reslab.core.surroundings import Context
from reslab.nn.stacks._loops import newton
from tests.nn.stacks.conftest import TOKENS, make, start

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"


class Toy(nn.Module):
    """The recorded layer: tokens are mixed by a matrix, then features."""

    writes_shared = ()

    @nn.compact
    def __call__(self, stream, shared, *, layer, positions, segments=None, state=None):
        def r(z):
            return z / jnp.sqrt(jnp.mean(z**2, axis=-1, keepdims=True) + 1e-6)

        shapes = {"A": (4, 4), "W1": (6, 12), "W2": (12, 6)}
        a, w1, w2 = (
            parameter(self, name, nn.initializers.ones, s, (None, None), jnp.float64)
            for name, s in shapes.items()
        )
        h = stream + jnp.einsum("ts,bsd->btd", a, r(stream))
        return h + jax.nn.relu(r(h) @ w1) ** 2 @ w2, shared, state


def test_is_the_recorded_correction_forward_and_backward(x64):
    with np.load(GOLDENS / "snlp.npz") as stored:
        file = {k.removeprefix("dev_"): stored[k] for k in stored}

    def layers(kind):
        return {
            "body": {
                "segment_0": {
                    "block_0": {
                        name: np.stack([file[f"{kind}_{name}_{i}"] for i in range(4)])
                        for name in ("A", "W1", "W2")
                    }
                }
            }
        }

    def applied(spec, params, h, **options):
        stack = registry.make(
            *("stacks", spec),
            **{"blocks": (Toy,), "depth": 4},
            context=Context(dtype=jnp.float64, param_dtype=jnp.float64),
        )
        positions = np.zeros((2, 4), int)
        return stack.apply({"params": params}, h, positions=positions, **options)

    params, h0 = layers("in"), file["in_h0"]
    for first, name in (("input", "h0"), ("forward", "batch_fwd")):
        for k in range(1, 5):
            spec = f"newton(iterations={k}, start={first!r})"
            y, _ = applied(spec, params, h0)
            np.testing.assert_allclose(y, file[f"idn_{name}_K{k}"][-1], rtol=1e-7)
    for damping in (0.0, 0.4, 1.0):
        y, _ = applied(f"newton(iterations=4, damping={damping})", params, h0)
        np.testing.assert_allclose(y, file["sequential"][-1], rtol=1e-7)
    for spec, tag in (
        ("uniform", "seq_last"),
        ("newton", "idn_K1_last"),
        ("newton(iterations=2)", "idn_K2_last"),
    ):

        def loss(params, h, spec=spec, tag=tag):
            return jnp.sum(applied(spec, params, h)[0] * file[f"cot_{tag}_h"])

        value, (slopes, slope) = jax.value_and_grad(loss, (0, 1))(params, h0)
        np.testing.assert_allclose(value, file[f"loss_{tag}_"], rtol=1e-7)
        np.testing.assert_allclose(slope, file[f"grad_{tag}_h0"], rtol=1e-6, atol=1e-7)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
            slopes,
            layers(f"grad_{tag}"),
        )


@pytest.mark.parametrize(
    "spec", ["newton(iterations=4)", "newton(parallel=2, iterations=2, damping=0.5)"]
)
def test_enough_iterations_are_the_uniform_stack(spec):
    uniform = make("uniform")
    variables = start(uniform)
    exact = make(spec)
    assert jax.tree.structure(start(exact)) == jax.tree.structure(variables)
    wanted = uniform.apply(variables, TOKENS)
    np.testing.assert_allclose(exact.apply(variables, TOKENS), wanted, atol=2e-5)
    other = make(spec.replace("iterations=4", "iterations=1")).apply(variables, TOKENS)
    assert ("parallel" in spec) or np.max(np.abs(other - wanted)) > 1e-3


def test_hyper_connections_are_corrected_as_by_the_authors(x64):
    """Their J are products of mixing matrices; streams lie on axis 1 here."""
    with np.load(GOLDENS / "snlp.npz") as stored:
        file = {k.removeprefix("dev_"): stored[k] for k in stored}
    first, *later = (file[f"hcn_h0_K{k}"].reshape(4, 2, 2, 4, 6) for k in range(1, 5))
    start = np.broadcast_to(file["in_X0_streams"].reshape(2, 2, 4, 6), first.shape)

    def mixed(block, change):
        return jnp.einsum("ij,bjtd->bitd", block, change)

    slope = jax.tree_util.Partial(mixed, file["J_blocks"])
    # What the layers gave is told by their first step, and corrected anew.
    before = np.concatenate([start[:1], first[:-1]]) - start
    given = first - jax.vmap(mixed)(file["J_blocks"], before)
    found = newton.corrected(given, start, 1.0, slope)
    np.testing.assert_allclose(found, first, rtol=1e-10)
    # The last step is exact, and no further one moves it.
    exact = file["mhc_sequential"].reshape(first.shape)
    np.testing.assert_allclose(later[-1], exact, rtol=1e-10)
    inputs = np.concatenate([start[:1], exact[:-1]])
    np.testing.assert_allclose(
        newton.corrected(exact, inputs, 1.0, slope), exact, rtol=1e-12
    )


@pytest.mark.parametrize("residual", ["plain", "hyper(streams=2)"])
def test_enough_iterations_are_exact_whatever_the_jacobian(residual):
    uniform = make("uniform", residual=residual)
    variables = start(uniform)
    wanted = uniform.apply(variables, TOKENS)
    exact = make("newton(iterations=4, jacobian='stream')", residual=residual)
    np.testing.assert_allclose(exact.apply(variables, TOKENS), wanted, atol=3e-5)


def test_the_jacobian_of_the_stream_knows_what_residuals_do():
    """Without branches layers are linear: one step is exact, but not with J = I."""
    residual = "hyper(streams=2)"
    uniform = make("uniform", residual=residual)

    def silenced(path, leaf):
        name = jax.tree_util.keystr(path)
        return 0.0 * leaf if "'output'" in name or "'down'" in name else leaf

    variables = jax.tree_util.tree_map_with_path(silenced, start(uniform))
    wanted = uniform.apply(variables, TOKENS)

    def distance(jacobian):
        model = make(f"newton(jacobian={jacobian!r})", residual=residual)
        return np.max(np.abs(model.apply(variables, TOKENS) - wanted))

    assert distance("stream") < 1e-5 and distance("identity") > 1e-3
    # That of plain residuals is the identity.
    variables = start(make("uniform"))
    one, other = (
        make(f"newton(jacobian={jacobian!r})").apply(variables, TOKENS)
        for jacobian in ("identity", "stream")
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_fused_layers_read_the_same_stream():
    """All mixers read it, then all feed-forward layers read what it became."""
    x = np.random.default_rng(2).normal(size=(2, 6, 8)).astype(np.float32)
    positions = np.broadcast_to(np.arange(6), (2, 6))
    params = start(make("uniform"))["params"]["layers"]

    def run(stack, params, x):
        made = make(stack).make_stack(parent=None)
        return made.apply({"params": params}, x, positions=positions)[0]

    def without(part):
        def changed(path, leaf):
            return 0.0 * leaf if part in jax.tree_util.keystr(path) else leaf

        return jax.tree_util.tree_map_with_path(changed, params)

    mixers, feed_forwards = without("'down'"), without("'output'")
    after = x + sum(run(f"path(layers=({i},))", mixers, x) - x for i in range(4))
    fused = "newton(fused=4)"
    np.testing.assert_allclose(run(fused, mixers, x), after, atol=1e-5)
    whole = run(fused, params, x)
    np.testing.assert_allclose(run(fused, feed_forwards, after), whole, atol=1e-5)
    # Two chunks of two, with as many iterations as chunks: one chunk after the other.
    apart = run("newton(fused=2, parallel=2)", params, x)
    chunks = run("newton(fused=2, iterations=2)", params, x)
    assert apart.shape == chunks.shape and np.max(np.abs(apart - chunks)) > 1e-3


def test_training_is_sequential_and_pays_for_the_error():
    uniform = make("uniform")
    variables = start(uniform)
    wanted = uniform.apply(variables, TOKENS)
    found = {}
    for stride in (0, 1, 2):
        model = make(f"newton(weight=0.5, stride={stride})")
        logits, written = model.apply(
            variables, TOKENS, rngs={DROPOUT: jax.random.key(0)}, mutable=[LOSSES]
        )
        np.testing.assert_allclose(logits, wanted, atol=2e-5)
        found[stride] = float(total_loss(written))
    # Layer 1 alone is exact, so strides 1 and 2 differ by layer 3.
    assert found[1] > found[2] > 0 and found[0] > 0
    exact = make("newton(weight=0.5, parallel=1)")
    _, written = exact.apply(
        variables, TOKENS, rngs={DROPOUT: jax.random.key(0)}, mutable=[LOSSES]
    )
    assert total_loss(written) == 0


@pytest.mark.parametrize(
    "spec",
    [
        "newton(iterations=2)",
        pytest.param(
            "newton(parallel=3, start='forward')", marks=pytest.mark.conformance
        ),
    ],
)
def test_one_token_at_a_time_is_all_at_once(spec):
    model = make(spec)
    variables = start(model)
    positions = np.broadcast_to(np.arange(6), (2, 6))

    @jax.jit
    def advance(tokens, positions, state):
        return model.apply(
            variables, tokens, positions=positions, state=state, method="hidden"
        )

    wanted, _ = advance(TOKENS, positions, None)
    state, parts = model.init_state(2, 6), []
    for part in (slice(0, 4), slice(4, 5), slice(5, 6)):
        y, state = advance(TOKENS[:, part], positions[:, part], state)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("stack", "fields", "message"),
    [
        ("newton(parallel=5)", {}, "parallel: expected at most 4 of the 4 layers"),
        ("newton(iterations=0)", {}, "iterations: expected at least 1"),
        ("newton(fused=3)", {}, "fused: expected a divisor of 4"),
        ("newton(fused=2)", {"residual": "hyper(streams=2)"}, "to which layers add"),
        (
            "newton(parallel=3)",
            {"mixer": ("attention(heads=2)", "gated_delta(heads=2)")},
            "and a multiple of 2; got 3",
        ),
        ("newton", {"residual": "attnres"}, "got a residual that reads what every"),
        (
            "newton",
            {"ffn": "layerwise_recurrent(experts=2, chosen=1, hidden=4)"},
            "an entry of the depth memory",
        ),
    ],
)
def test_refuses_in_one_line(stack, fields, message):
    model = make(stack, **fields)
    with pytest.raises(ReslabError, match=message) as caught:
        model.apply(start(model), TOKENS)
    assert "\n" not in str(caught.value)


def test_what_is_evaluated_in_sequence_alone_is_refused_before_training():
    with pytest.raises(ReslabError, match="a residual that reads what every"):
        start(make("newton", residual="attnres"))
    recurrent = "layerwise_recurrent(experts=2, chosen=1, hidden=4)"
    with pytest.raises(ReslabError, match="an entry of the depth memory"):
        start(make("newton", ffn=recurrent))
