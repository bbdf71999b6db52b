"""What every token mixer keeps; named options are tested beside the defaults."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import count_parameters, named_leaves, unbox
from reslab.observe.flops import count_flops

BATCH, LENGTH, WIDTH = 2, 8, 16
OPTIONS = (
    "attention(heads=4, kv_heads=2, window=3, qk_norm='rms', use_bias=True)",
    "attention(heads=2, head_dim=4, softcap=3.0, value_path='value_residual')",
    "attention(kv_heads=1, value_path='satformer')",
    "attention(heads=2, qk_norm='rms', qk_norm_axis='width', is_qk_norm_last=True, "
    "use_output_gate=True, position='rope(fraction=0.5)')",
    "gated_delta(heads=4, head_dim=4, key_heads=2, is_convolution_combined=True, "
    "allow_negative_eigenvalues=True)",
    "delta(heads=2, use_gate=True)",
    "kda(heads=2, lower_bound=-5.0, is_gate_low_rank=False, use_gate_bias=True)",
)


# Those that read later tokens have a suite of their own.
CAUSAL = [
    name
    for name in registry.names("mixers")
    if not getattr(registry.unbound("mixers", name), "is_bidirectional", False)
]


@pytest.fixture(scope="module", params=(*CAUSAL, *OPTIONS))
def spec(request):
    return request.param


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(2), (BATCH, LENGTH, WIDTH))


@pytest.fixture(scope="module")
def mixer(spec, x, randomized):
    """The mixer of a layer after the first, as a function of (variables, x, ...)."""
    return make_mixer(spec, x, randomized)


def make_mixer(spec, x, randomized, **context):
    module = registry.make("mixers", spec, position="rope", **context)
    positions = places(x)
    shared = {}
    if module.writes_shared:
        # What the first layer leaves takes part as a constant.
        (_, shared, _), _ = jax.jit(module.init_with_output)(
            jax.random.key(1), x[:, ::-1], positions=positions
        )
        assert shared
    variables = jax.jit(module.init)(
        jax.random.key(0), x, positions=positions, shared=shared
    )

    def apply(variables, x, *, start=0, **keywords):
        keywords.setdefault("positions", places(x) + start)
        # A mixer meets the depth memory of the tokens that it is given.
        seen = jax.tree.map(
            lambda a: jax.lax.dynamic_slice_in_dim(a, start, x.shape[1], axis=1),
            shared,
        )
        return module.apply(variables, x, shared=seen, **keywords)

    return module, apply, randomized(variables)


def places(x):
    return jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])


def test_keeps_shape_and_passes_the_depth_memory_on(mixer, x):
    module, apply, variables = mixer
    y, shared, state = apply(variables, x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert bool(shared) == bool(module.writes_shared)
    assert state is None


def test_no_token_changes_an_earlier_one(mixer, x):
    _, apply, variables = mixer
    run = jax.jit(lambda x: apply(variables, x)[0])
    before = run(x)
    for t in range(LENGTH):
        change = np.asarray(jnp.abs(run(x.at[:, t].add(1.0)) - before))
        assert np.max(change[:, :t], initial=0.0) <= 1e-6
        assert np.all(np.max(change[:, t], axis=-1) > 1e-4)


def test_packed_documents_do_not_see_each_other(mixer, x):
    _, apply, variables = mixer
    apply, first = jax.jit(apply), 3
    segments = jnp.where(jnp.arange(LENGTH) < first, 1, 2)
    positions = jnp.where(segments == 1, 0, -first) + jnp.arange(LENGTH)
    segments, positions = (
        jnp.broadcast_to(a, (BATCH, LENGTH)) for a in (segments, positions)
    )
    packed, _, _ = apply(variables, x, positions=positions, segments=segments)
    one, _, _ = apply(variables, x[:, :first])
    other, _, _ = apply(
        variables, x[:, first:], start=first, positions=places(x[:, first:])
    )
    alone = jnp.concatenate([one, other], axis=1)
    np.testing.assert_allclose(packed, alone, atol=2e-6)


@pytest.mark.parametrize("prefill", [0, 1, 5])
def test_whole_is_prefill_and_one_token_at_a_time(mixer, x, prefill):
    module, apply, variables = mixer
    apply = jax.jit(apply)
    wanted, _, _ = apply(variables, x)
    state = module.init_state(BATCH, LENGTH, WIDTH)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    parts = []
    cuts = [0, *([prefill] if prefill else []), *range(prefill + 1, LENGTH + 1)]
    for start, stop in itertools.pairwise(cuts):
        y, _, state = apply(variables, x[:, start:stop], start=start, state=state)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == shapes
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), wanted, atol=5e-6)


def test_state_that_does_not_grow_holds_any_number_of_tokens(mixer, x):
    module, apply, variables = mixer
    state = module.init_state(BATCH, 4, WIDTH)
    longer = module.init_state(BATCH, 64, WIDTH)
    shapes, longer_shapes = (jax.tree.map(jnp.shape, s) for s in (state, longer))
    if shapes != longer_shapes:
        # A cache: what grows grows by one axis, with the length.
        # Beside it there is the length of each row.
        sizes = [count_parameters(s) - BATCH for s in (state, longer)]
        assert sizes[1] == 16 * sizes[0]
        return
    apply = jax.jit(apply)
    y, _, _ = apply(variables, x, state=state)
    np.testing.assert_allclose(y, apply(variables, x)[0], atol=5e-6)


def test_compiled_is_eager(mixer, x, assert_close):
    _, apply, variables = mixer
    compiled = jax.jit(lambda v, x: apply(v, x)[0])
    assert_close(compiled(variables, x), apply(variables, x)[0], 1e-5)


def test_uses_every_parameter(mixer, x, assert_uses_every_parameter):
    _, apply, variables = mixer
    assert_uses_every_parameter(lambda v: apply(v, x)[0], variables)


def test_gradient_is_that_of_finite_differences(
    spec, x, randomized, x64, assert_gradient_is_slope
):
    x = np.asarray(x, np.float64)
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    _, apply, variables = make_mixer(spec, x, randomized, **wide)
    assert_gradient_is_slope(lambda v, x: apply(v, x)[0], variables, x)


def test_is_finite_in_bfloat16(spec, x, randomized):
    x = (100 * x).astype(jnp.bfloat16)
    _, apply, variables = make_mixer(spec, x, randomized, dtype=jnp.bfloat16)
    for leaf in jax.tree.leaves(variables):
        assert leaf.dtype == jnp.float32
    y, pull = jax.vjp(jax.jit(lambda v, x: apply(v, x)[0]), variables, x)
    assert y.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves((y, pull(jnp.ones_like(y)))):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))


def test_output_scale_reaches_the_projection_into_the_stream(spec, x):
    module = registry.make("mixers", spec, output_scale=0.0)
    (y, _, _), _ = module.init_with_output(jax.random.key(0), x, positions=places(x))
    np.testing.assert_array_equal(y, 0.0)


def test_costs_what_it_says(mixer, x):
    module, apply, variables = mixer
    leaves = named_leaves(unbox(variables))
    kernels = sum(leaf.size for name, leaf in leaves.items() if "kernel" in name)
    counted = count_flops(lambda v, x: apply(v, x)[0], variables, x)
    said = 2 * kernels + module.mixing_flops(LENGTH, WIDTH)
    assert counted == BATCH * LENGTH * said
