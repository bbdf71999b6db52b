"""Bad steps leave the optimizer as it was; good ones are never left out."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core.errors import ReslabError
from reslab.optim.guard import KNOWN, guarded, parse_policy

PARAMS = {"w": jnp.ones((4, 4)), "b": jnp.zeros(4)}


def drive(losses, scales, spec="skip(window=32)"):
    """The state before each step and after all; scale multiplies the gradient."""
    made = guarded(optax.adamw(1e-2), parse_policy(spec))

    @jax.jit
    def step(params, state, loss, scale):
        gradient = jax.tree.map(lambda p: scale * jnp.ones_like(p), params)
        updates, state = made.update(gradient, state, params, loss=loss)
        return optax.apply_updates(params, updates), state

    path = [(PARAMS, made.init(PARAMS))]
    for loss, scale in zip(losses, scales, strict=True):
        path.append(step(*path[-1], jnp.float32(loss), jnp.float32(scale)))
    return jax.device_get(path)


def clean(steps, seed=0):
    generator = np.random.default_rng(seed)
    losses = 2.0 + np.exp(-np.arange(steps) / 30) + 0.05 * generator.normal(size=steps)
    norms = np.exp(0.2 * generator.normal(size=steps))
    return losses.tolist(), norms.tolist()


def test_planted_faults_leave_everything_as_it_was():
    losses, scales = clean(200)
    generator = np.random.default_rng(1)
    planted = sorted(generator.choice(np.arange(KNOWN, 200), 50, replace=False))
    kinds = ("loss nan", "loss inf", "loss spike", "norm nan", "norm inf", "norm spike")
    bad = {"nan": np.nan, "inf": np.inf, "spike": 1e4}
    for number, at in enumerate(planted):
        where, kind = kinds[number % len(kinds)].split()
        (losses if where == "loss" else scales)[at] = bad[kind]
    path = drive(losses, scales)
    for at, ((params, before), (new_params, after)) in enumerate(
        itertools.pairwise(path)
    ):
        is_same = all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves((params, before.inner)),
                jax.tree.leaves((new_params, after.inner)),
                strict=True,
            )
        )
        assert is_same == (at in planted), at
        assert (after.in_a_row > 0) == (at in planted)
    assert path[-1][1].skipped == 50
    assert path[-1][1].accepted == 150


def test_a_nan_does_not_blind_the_guard():
    """Where it entered the window, no later step would be accepted."""
    losses, scales = clean(60)
    losses[20] = np.nan
    state = drive(losses, scales)[-1][1]
    assert (state.skipped, state.in_a_row) == (1, 0)
    assert np.isfinite(state.losses).all()


@pytest.mark.parametrize("seed", range(3))
def test_clean_steps_are_all_taken(seed):
    state = drive(*clean(1000, seed), "skip(window=128)")[-1][1]
    assert state.skipped == 0


@pytest.mark.parametrize("seed", range(3))
def test_long_tails_of_norms_are_no_spikes(seed):
    """As of small batches: one of a thousand is three times the usual."""
    steps = 10_000
    generator = np.random.default_rng(seed)
    norms = np.exp(0.2 * generator.standard_t(4, size=steps)).astype(np.float32)
    norms = np.minimum(norms, 6.0)
    made = guarded(optax.sgd(1e-3), parse_policy("skip(window=128)"))

    def step(state, norm):
        _, state = made.update({"w": norm[None]}, state, loss=jnp.float32(2.0))
        return state, state.skipped

    start = made.init({"w": jnp.zeros(1)})
    skipped = jax.jit(lambda s: jax.lax.scan(step, s, norms)[1])(start)
    assert np.quantile(norms, 0.999) > 3.0
    assert skipped[-1] <= 1
    spiking = jnp.asarray(norms).at[5000].set(50.0)
    found = jax.jit(lambda s: jax.lax.scan(step, s, spiking)[1])(start)
    assert found[5000] == found[4999] + 1


def test_a_loss_at_rest_is_taken():
    losses = [1.0] * 40 + [1.002] * 10
    assert drive(losses, [1.0] * 50)[-1][1].skipped == 0


def test_without_a_fault_it_is_the_inner_optimizer():
    losses, scales = clean(20)
    found = drive(losses, scales)[-1][0]
    inner, params = optax.adamw(1e-2), PARAMS
    state = inner.init(params)
    for scale in scales:
        gradient = jax.tree.map(lambda p, s=scale: jnp.full_like(p, s), params)
        updates, state = inner.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(found, params, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ignore", "on_bad_step: unknown 'ignore'"),
        ("halt(sigma=2.0)", "halt has no argument"),
        ("skip(windows=4)", "skip has no argument 'windows'"),
        ("skip(window=2)", "window: expected at least 16"),
        ("skip(sigma='six')", "sigma: expected at least 1"),
        ("rollback(limit=0)", "limit: expected at least 1"),
        ("rollback(limit=True)", "limit: expected at least 1"),
        ("skip(", "malformed spec"),
    ],
)
def test_policies_that_make_no_sense(spec, says):
    with pytest.raises(ReslabError) as caught:
        parse_policy(spec)
    assert says in str(caught.value)
