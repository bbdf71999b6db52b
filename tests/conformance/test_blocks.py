"""What every block keeps; the standard one with every mixer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.surroundings import Context

BATCH, LENGTH, WIDTH = 2, 8, 16
# Blocks know mixers by their protocol alone: one of each is tried with all others.
CAUSAL = [
    name
    for name in registry.names("mixers")
    if not getattr(registry.unbound("mixers", name), "is_bidirectional", False)
]
CASES = [
    (block, mixer)
    for block in registry.names("blocks")
    for mixer in CAUSAL
    if block == "standard" or mixer == "attention"
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(2), (BATCH, LENGTH, WIDTH))


@pytest.fixture(scope="module")
def block(case, x, randomized):
    """The block as a function of (variables, x, ...), and moved parameters.

    Before and after it stand the ends of the residual that it has by default.
    """
    name, mixer = case
    module = registry.make(
        "blocks", name, mixer=mixer, context=Context(depth=2, position="rope")
    )
    ends = registry.make("residuals", module.residual)

    def widen(x):
        return ends.apply({}, x, method="widen")

    variables = jax.jit(lambda key, x: init(module, key, widen(x), x))(
        jax.random.key(0), x
    )

    @functools.partial(jax.jit, static_argnames="layer")
    def apply(variables, x, *, layer=1, **keywords):
        keywords.setdefault("positions", places(x))
        stream, *others = module.apply(variables, widen(x), {}, layer=layer, **keywords)
        return ends.apply({}, stream, method="narrow"), *others

    return module, apply, randomized(variables)


def init(module, key, stream, x):
    return module.init(key, stream, {}, layer=0, positions=places(x))


def places(x):
    return jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])


# Blocks whose first sublayer is a mixer, which may read queries, keys and values apart.
MIXERS_FIRST = ("standard", "hourglass", "mixer_only", "short_window")


def reads_apart(residual):
    """Whether queries, keys and values may read the stream at points of their own."""
    return getattr(registry.make("residuals", residual), "reads_apart", False)


# Residuals know mixers by their protocol alone too, but for what these are handed.
STREAMS = [
    pytest.param(case, residual, id="-".join((*case, residual)))
    for case in CASES
    for residual in registry.names("residuals")
    if case[1] == "attention" or residual == "plain" or reads_apart(residual)
]


@pytest.mark.parametrize(("case", "residual"), STREAMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keeps_the_stream_of_every_residual(case, x, residual, dtype):
    name, mixer = case

    def make():
        context = Context(dtype=dtype)
        return registry.make(
            "blocks", name, mixer=mixer, residual=residual, context=context
        )

    if name == "reversible" and residual != "reversible":
        with pytest.raises(ReslabError, match="expected residual 'reversible'"):
            make()
        return
    ends = registry.make("residuals", residual)
    if name == "recurrent_transformer" and getattr(ends, "is_history", False):
        with pytest.raises(ReslabError, match="expected one of this layer's stream"):
            make()
        return
    takes = getattr(registry.module("mixers", mixer).build, "takes_inputs", False)
    if getattr(ends, "reads_apart", False) and not (name in MIXERS_FIRST and takes):
        with pytest.raises(ReslabError, match="queries, keys and values apart"):
            make()
        return
    module = make()
    x = x.astype(dtype)

    def layer(x):
        stream = ends.apply({}, x, method="widen")
        (new, _, _), _ = module.init_with_output(
            jax.random.key(0), stream, {}, layer=0, positions=places(x)
        )
        return stream, new

    before, after = jax.eval_shape(layer, x)
    assert after == before


def test_takes_a_traced_layer(block, x, assert_close):
    _, apply, variables = block
    compute = jax.jit(lambda layer: apply.__wrapped__(variables, x, layer=layer)[0])
    assert_close(compute(1), apply(variables, x, layer=1)[0], 1e-5)


def test_no_token_changes_an_earlier_one(block, x):
    _, apply, variables = block
    other = x.at[:, 4].add(1.0)
    change = np.abs(apply(variables, other)[0] - apply(variables, x)[0])
    assert np.max(change[:, :4]) <= 1e-6
    assert np.all(np.max(change[:, 4], axis=-1) > 1e-4)


def test_packed_documents_do_not_see_each_other(block, x, assert_close):
    _, apply, variables = block
    segments = jnp.broadcast_to(jnp.arange(LENGTH) // 4, (BATCH, LENGTH))
    positions = places(x) % 4
    packed, _, _ = apply(variables, x, positions=positions, segments=segments)
    alone = [apply(variables, part)[0] for part in (x[:, :4], x[:, 4:])]
    # Sixteen roundings of the largest entry: how far products of other shapes differ
    # depends on the processor.
    assert_close(packed, jnp.concatenate(alone, axis=1), 2e-6)


def test_whole_is_prefill_and_one_token_at_a_time(block, x):
    module, apply, variables = block
    wanted, _, _ = apply(variables, x)
    state, parts = module.init_state(BATCH, LENGTH, WIDTH), []
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 8)):
        y, _, state = apply(
            variables,
            x[:, start:stop],
            positions=places(x)[:, start:stop],
            state=state,
        )
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), wanted, atol=1e-5)


def test_uses_every_parameter(block, x, assert_uses_every_parameter):
    _, apply, variables = block
    assert_uses_every_parameter(lambda v: apply(v, x)[0], variables)
