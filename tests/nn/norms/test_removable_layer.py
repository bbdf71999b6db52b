import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.losses import LOSSES
from reslab.core.model_state import BATCH_STATS
from reslab.nn.norms.fake_layer import FakeLayerNorm
from reslab.nn.norms.layer import LayerNorm
from reslab.nn.norms.removable_layer import RemovableLayerNorm


def state(deviation, updates):
    return {
        BATCH_STATS: {
            "deviation": np.full(1, deviation),
            "updates": np.int32(updates),
        }
    }


@pytest.fixture
def params():
    gain, bias = np.random.default_rng(1).normal(size=(2, 8))
    return {"gain": gain, "bias": bias}


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(3, 4, 8))


def test_golden_running_mean(trained, golden):
    data = golden("fake_ln")
    now, mask = state(1.3, 1), np.ones(data["real_steps_x"].shape[1:3], bool)
    norm = RemovableLayerNorm(use_gain=False, use_bias=False)
    for x, wanted in zip(
        data["real_steps_x"], data["real_average_std_after"], strict=True
    ):
        *_, now = trained(norm, {}, now, x, np.zeros_like(x), mask)
        np.testing.assert_allclose(now[BATCH_STATS]["deviation"], wanted, rtol=1e-9)


@pytest.mark.parametrize("updates", [4, 5])
def test_is_one_and_then_the_other(trained, params, x, updates):
    mask = np.ones(x.shape[:2], bool)
    norm = RemovableLayerNorm(removed_at=5)
    y, _, _, after = trained(norm, params, state(1.7, updates), x, x, mask)
    other = LayerNorm(epsilon=1e-5) if updates < 5 else FakeLayerNorm(deviation=1.7)
    np.testing.assert_allclose(y, other.apply({"params": params}, x), rtol=1e-12)
    stays = np.array_equal(after[BATCH_STATS]["deviation"], [1.7])
    assert stays == (updates == 5)
    again = norm.apply({"params": params, **state(1.7, updates)}, x)
    np.testing.assert_allclose(again, y, rtol=1e-12)


def test_begins_with_the_first_batch(trained, params, x):
    mask = np.arange(4) < np.array([4, 2, 3])[:, None]
    *_, after = trained(RemovableLayerNorm(), params, state(1.0, 0), x, x, mask)
    wanted = np.mean(np.sqrt(np.var(x, axis=-1) + 1e-5)[mask])
    np.testing.assert_allclose(after[BATCH_STATS]["deviation"], [wanted], rtol=1e-12)


def test_the_penalty_is_the_variance_of_the_deviations(x64, params, x):
    norm = RemovableLayerNorm(penalty=0.1)
    variables = {"params": params, **state(1.0, 0)}
    mask = np.ones(x.shape[:2], bool)
    _, written = norm.apply(variables, x, mask, mutable=[BATCH_STATS, LOSSES])
    deviations = np.sqrt(np.var(x, axis=-1) + 1e-5)
    (found,) = jax.tree.leaves(written[LOSSES])
    np.testing.assert_allclose(found, 0.1 * np.var(deviations), rtol=1e-9)
    _, written = norm.apply(
        variables, x, mask, removed_at=3, mutable=[BATCH_STATS, LOSSES]
    )
    assert LOSSES not in written
    assert jnp.ndim(found) == 0
