import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS
from reslab.nn.norms.batch import BatchNorm

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture
def start():
    gain, bias = np.random.default_rng(1).normal(size=(2, 6))
    statistics = {
        "mean": np.full(6, 0.5),
        "variance": np.full(6, 2.0),
        "updates": np.int32(3),
    }
    return {"gain": gain, "bias": bias}, {BATCH_STATS: statistics}


def draw(*shape):
    return np.random.default_rng(0).normal(size=(2, *shape))


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5, 6)])
def test_trains_like_the_layer_of_flax(trained, start, shape):
    params, state = start
    x, cotangent = draw(*shape)
    y, gradient, x_gradient, after = trained(BatchNorm(), params, state, x, cotangent)
    theirs = nn.BatchNorm(
        False, momentum=0.9, epsilon=1e-5, use_fast_variance=False, dtype=jnp.float64
    )
    renamed = {"scale": 1 + params["gain"], "bias": params["bias"]}

    def apply(p, x):
        statistics = {"mean": state[BATCH_STATS]["mean"], "var": np.full(6, 2.0)}
        variables = {"params": p, "batch_stats": statistics}
        return theirs.apply(variables, x, mutable=["batch_stats"])

    with jax.numpy_dtype_promotion("standard"):
        wanted, pull, written = jax.vjp(apply, renamed, x, has_aux=True)
        their_gradient, their_x_gradient = pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(y, wanted, **CLOSE)
    np.testing.assert_allclose(x_gradient, their_x_gradient, **CLOSE)
    np.testing.assert_allclose(gradient["gain"], their_gradient["scale"], **CLOSE)
    np.testing.assert_allclose(gradient["bias"], their_gradient["bias"], **CLOSE)
    ours, theirs = after[BATCH_STATS], written["batch_stats"]
    np.testing.assert_allclose(ours["mean"], theirs["mean"], **CLOSE)
    # Flax keeps the biased variance, PyTorch and we the unbiased one.
    number = x.size // 6
    biased = (ours["variance"] - 1.8) * (number - 1) / number + 1.8
    np.testing.assert_allclose(biased, theirs["var"], **CLOSE)
    assert ours["updates"] == 4


def test_evaluates_with_the_running_statistics(x64, start):
    params, state = start
    x, _ = draw(2, 4, 6)
    y = BatchNorm().apply({"params": params, **state}, x)
    wanted = (x - 0.5) / np.sqrt(2.0 + 1e-5) * (1 + params["gain"]) + params["bias"]
    np.testing.assert_allclose(y, wanted, rtol=1e-12)
    alone = BatchNorm().apply({"params": params, **state}, x[:1, 1:2])
    np.testing.assert_array_equal(alone, y[:1, 1:2])


def test_padding_is_not_seen(trained, start):
    _, state = start
    x, cotangent = draw(3, 4, 6)
    mask = np.arange(4) < np.array([[4], [2], [3]])
    norm = BatchNorm(use_gain=False, use_bias=False)
    y, _, _, after = trained(norm, {}, state, x, cotangent, mask)
    flat, _, _, alone = trained(norm, {}, state, x[mask], cotangent[mask])
    np.testing.assert_allclose(y[mask], flat, **CLOSE)
    np.testing.assert_array_equal(y[~mask], x[~mask])
    np.testing.assert_allclose(
        after[BATCH_STATS]["variance"], alone[BATCH_STATS]["variance"], **CLOSE
    )
    x[~mask] = np.inf
    again, _, x_gradient, _ = trained(norm, {}, state, x, cotangent, mask)
    np.testing.assert_array_equal(again[mask], y[mask])
    assert np.all(np.isfinite(x_gradient[mask]))


def test_making_parameters_updates_nothing():
    x, _ = draw(3, 6)
    variables = BatchNorm().init(jax.random.key(0), x.astype(np.float32))
    assert variables[BATCH_STATS]["updates"] == 0
    np.testing.assert_array_equal(variables[BATCH_STATS]["variance"], 1.0)


@pytest.mark.parametrize(
    ("shape", "mask", "told"),
    [
        ((2, 4, 6), None, r"without a mask.*expected mask \(batch, length\)"),
        ((1, 4, 6), np.ones((1, 4), bool), "needs several rows.*got 1"),
        ((1, 6), None, "needs several rows.*got 1"),
    ],
)
def test_refuses_what_has_no_batch_statistics(trained, start, shape, mask, told):
    x, cotangent = draw(*shape)
    with pytest.raises(ReslabError, match=told):
        trained(BatchNorm(), *start, x, cotangent, mask)
