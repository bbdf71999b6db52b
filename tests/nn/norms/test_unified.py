import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS
from reslab.nn.norms.power import PowerNorm
from reslab.nn.norms.unified import UnifiedNorm

CLOSE = {"rtol": 1e-7, "atol": 1e-9}


def state_of(data):
    return {
        BATCH_STATS: {
            "mean_square": data["buf_in_running_var"],
            "squares": data["buf_in_buffer_x2"],
            "updates": np.int32(data["buf_in_iters"].item()),
            "skipped": np.int32(0),
        },
        GRADIENT_STATS: {
            "products": data["buf_in_buffer_gz"],
            "product": data["buf_in_ema_gz"],
        },
    }


def fresh(window, channels=8, updates=0, backward=0):
    return {
        BATCH_STATS: {
            "mean_square": np.ones(channels),
            "squares": np.zeros((window, channels)),
            "updates": np.int32(updates),
            "skipped": np.int32(0),
        },
        GRADIENT_STATS: {
            "products": np.zeros((backward or window, channels)),
            "product": np.zeros(channels),
        },
    }


@pytest.mark.parametrize("run", ["", "late_"])
def test_golden_over_steps(trained, golden, run):
    """A cold start with a mask, and smoothed statistics with r other than 1."""
    whole = golden("unified_norm")
    data = {
        key.removeprefix(run): value
        for key, value in whole.items()
        if key.startswith("late_") == bool(run)
    }
    assert data["fp_window"] == data["bp_window"]
    norm = UnifiedNorm(
        window=int(data["fp_window"]),
        warmup=int(data["warmup_iters"]),
        is_filtering=bool(data["outlier_filtration"]),
    )
    params = {"gain": data["param_weight"] - 1.0, "bias": data["param_bias"]}
    shape = data["steps_x"].shape[1:3]
    mask = ~data["pad_mask_BN"] if "pad_mask_BN" in data else np.ones(shape, bool)
    state = state_of(data)
    for index in range(len(data["steps_x"])):
        y, gradient, x_gradient, state = trained(
            norm, params, state, data["steps_x"][index], data["steps_cot"][index], mask
        )
        batch, backward = state[BATCH_STATS], state[GRADIENT_STATS]
        for actual, name in (
            (y, "out"),
            (x_gradient, "grad_x"),
            (gradient["gain"], "grad_weight"),
            (gradient["bias"], "grad_bias"),
            (batch["mean_square"], "running_var_after"),
            (batch["squares"], "buffer_x2_after"),
            (backward["products"], "buffer_gz_after"),
            (backward["product"], "ema_gz_after"),
            (batch["skipped"], "skip_counter_after"),
            (batch["updates"], "iters_after"),
        ):
            np.testing.assert_allclose(
                actual,
                np.squeeze(data[f"steps_{name}"][index]),
                **CLOSE,
                err_msg=f"step {index}: {name}",
            )
    y, pull = jax.vjp(
        lambda params, x: norm.apply({"params": params, **state}, x),
        params,
        data["eval_x"],
    )
    gradient, x_gradient = pull(jnp.asarray(data["eval_cot"]))
    np.testing.assert_allclose(y, data["eval_out"], **CLOSE)
    np.testing.assert_allclose(x_gradient, data["eval_grad_x"], **CLOSE)
    np.testing.assert_allclose(gradient["gain"], data["eval_grad_weight"], **CLOSE)


class Equations:
    """The norm in NumPy, float64, from the algorithm as it is written down."""

    def __init__(self, forward, backward, warmup, is_filtering, channels, t=0):
        self.forward, self.backward, self.warmup = forward, backward, warmup
        self.is_filtering, self.t = is_filtering, t
        self.running, self.ema = np.ones(channels), np.zeros(channels)
        self.squares = np.zeros((forward, channels))
        self.products = np.zeros((backward, channels))
        self.seen = {"clipped": 0, "filtered": 0, "spared by the factor": 0}

    def step(self, x, dy, gain, counted, epsilon=1e-5, momentum=0.9):
        """Output, and the gradients of x and gain."""
        self.t += 1
        q = np.array([np.mean(x[..., c][counted] ** 2) for c in range(x.shape[-1])])
        skip = self.forward <= 1
        deviation = np.sqrt(self.squares).var(ddof=1) if self.squares.size > 1 else 0
        slot = self.t % self.forward
        self.squares[slot] = q
        with np.errstate(divide="ignore"):
            geometric = np.exp(np.log(self.squares).mean(0))
        if self.t >= self.warmup and self.is_filtering:
            excess = (self.squares.mean(0) - geometric).max()
            if excess > self.forward * deviation:
                self.squares[slot], skip = self.running, True
                self.seen["filtered"] += 1
            elif excess > deviation:
                self.seen["spared by the factor"] += 1
        is_own = self.t <= self.forward or self.t < self.warmup or skip
        v = q if is_own else geometric
        ratio = np.sqrt(v + epsilon) / np.sqrt(self.running + epsilon)
        if self.t <= max(1000, self.warmup) or skip:
            r = np.ones_like(v)
        else:
            r = np.clip(ratio, 0.2, 5.0)
            self.seen["clipped"] += int(np.any(r != ratio))
        z = x / np.sqrt(v + epsilon)
        self.running = momentum * self.running + (1 - momentum) * v
        gh = dy * gain * r
        gz = (gh * z).mean((0, 1))
        self.products[self.t % self.backward] = self.ema if skip else gz
        is_own = self.t <= self.backward or self.t < self.warmup or skip
        mean = gz if is_own else self.products.mean(0)
        self.ema = momentum * self.ema + (1 - momentum) * mean
        taken = mean if skip else self.ema
        dx = (gh - taken * z) / np.sqrt(v + epsilon)
        return gain * z, dx, (dy * r * z).sum((0, 1))

    def compared(self, norm, trained, batches, rng):
        """Steps both over batches, from the same state, and compares all they leave."""
        channels = len(self.running)
        state = fresh(self.forward, channels, self.t, self.backward)
        state[BATCH_STATS]["squares"] = self.squares.copy()
        gain = 1.0 + 0.3 * rng.normal(size=channels)
        counted = np.ones(batches[0].shape[:2], bool)
        counted[0, -1] = False
        for number, x in enumerate(batches):
            dy = rng.normal(size=x.shape)
            wanted = self.step(x, dy, gain, counted)
            y, by_params, by_x, state = trained(
                norm, {"gain": gain - 1.0}, state, x, dy, counted
            )
            pairs = {
                "y": (y, wanted[0]),
                "dx": (by_x, wanted[1]),
                "dgain": (by_params["gain"], wanted[2]),
                "running": (state[BATCH_STATS]["mean_square"], self.running),
                "squares": (state[BATCH_STATS]["squares"], self.squares),
                "products": (state[GRADIENT_STATS]["products"], self.products),
                "ema": (state[GRADIENT_STATS]["product"], self.ema),
                "skipped": (state[BATCH_STATS]["skipped"], self.seen["filtered"]),
            }
            for name, (found, exact) in pairs.items():
                message = f"step {number}: {name}"
                np.testing.assert_allclose(found, exact, **CLOSE, err_msg=message)
        return self.seen


@pytest.mark.parametrize("run", ["", "late_"])
def test_the_equations_are_the_authors(golden, run):
    whole = golden("unified_norm")
    data = {
        key.removeprefix(run): value
        for key, value in whole.items()
        if key.startswith("late_") == bool(run)
    }
    ours = Equations(
        int(data["fp_window"]),
        int(data["bp_window"]),
        int(data["warmup_iters"]),
        bool(data["outlier_filtration"]),
        data["steps_x"].shape[-1],
        int(data["buf_in_iters"].item()),
    )
    ours.running = np.array(data["buf_in_running_var"]).reshape(-1)
    ours.squares = np.array(data["buf_in_buffer_x2"])
    ours.products = np.array(data["buf_in_buffer_gz"])
    ours.ema = np.array(data["buf_in_ema_gz"]).reshape(-1)
    counted = np.ones(data["steps_x"].shape[1:3], bool)
    if "pad_mask_BN" in data:
        counted = ~data["pad_mask_BN"].astype(bool)
    for index, x in enumerate(data["steps_x"]):
        y, dx, by_gain = ours.step(
            x, data["steps_cot"][index], data["param_weight"], counted
        )
        bias = data["param_bias"]
        np.testing.assert_allclose(y + bias, data["steps_out"][index], **CLOSE)
        np.testing.assert_allclose(dx, data["steps_grad_x"][index], **CLOSE)
        np.testing.assert_allclose(by_gain, data["steps_grad_weight"][index], **CLOSE)


@pytest.mark.parametrize("forward, backward", [(3, 2), (2, 5), (1, 3), (4, 1)])
def test_each_direction_has_its_window(trained, forward, backward):
    rng = np.random.default_rng(1)
    norm = UnifiedNorm(
        window=forward, backward_window=backward, warmup=3, use_bias=False
    )
    exact = Equations(forward, backward, 3, False, 6)
    exact.compared(norm, trained, list(rng.normal(size=(9, 4, 3, 6))), rng)
    # Another window would not do.
    assert exact.products.shape != exact.squares.shape


def test_the_ratio_is_bounded(trained):
    rng = np.random.default_rng(2)
    norm = UnifiedNorm(window=2, warmup=5, use_bias=False)
    exact = Equations(2, 2, 5, False, 6, t=2000)
    exact.squares[:] = 1.0
    batches = rng.normal(size=(8, 4, 3, 6))
    batches[2:4] *= 100.0  # The root of the mean square over the running one, above 5;
    batches[6:] *= 1e-3  # and below 1/5.
    assert exact.compared(norm, trained, list(batches), rng)["clipped"] >= 3


def test_an_outlier_exceeds_the_variance_by_the_length_of_the_window(trained):
    """Batches that would be left out without that factor are not, larger ones are."""
    rng = np.random.default_rng(3)
    norm = UnifiedNorm(window=4, warmup=5, is_filtering=True, use_bias=False)
    exact = Equations(4, 4, 5, True, 6, t=2000)
    exact.squares[:] = 1.0 + 0.5 * rng.random(exact.squares.shape)
    batches = rng.normal(size=(12, 4, 6, 6))
    batches[3::4] *= 1.4
    batches[7] *= 50.0
    seen = exact.compared(norm, trained, list(batches), rng)
    assert seen["filtered"] >= 1 and seen["spared by the factor"] >= 1, seen


def test_a_window_of_one_is_the_exact_derivative(trained):
    x, cotangent = np.random.default_rng(0).normal(size=(2, 4, 3, 8))
    mask = np.ones((4, 3), bool)
    ours = UnifiedNorm(window=1, epsilon=0.0, use_gain=False, use_bias=False)
    theirs = PowerNorm(
        is_running=False, groups=0, epsilon=0.0, use_gain=False, use_bias=False
    )
    exact = {
        BATCH_STATS: {"mean_square": np.ones(8), "updates": np.int32(0)},
    }
    y, _, x_gradient, _ = trained(ours, {}, fresh(1), x, cotangent, mask)
    wanted, _, wanted_x, _ = trained(theirs, {}, exact, x, cotangent, mask)
    np.testing.assert_allclose(y, wanted, rtol=1e-12)
    np.testing.assert_allclose(x_gradient, wanted_x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("is_filtering", [False, True])
def test_an_outlier_is_left_out(trained, is_filtering):
    rng = np.random.default_rng(0)
    norm = UnifiedNorm(
        window=4, warmup=5, is_filtering=is_filtering, use_gain=False, use_bias=False
    )
    mask = np.ones((4, 6), bool)
    state = fresh(4, updates=2000)
    # The window holds what batches like these leave.
    state[BATCH_STATS]["squares"] = 1.0 + 0.3 * rng.random((4, 8))
    for _ in range(5):
        x, cotangent = rng.normal(size=(2, 4, 6, 8))
        *_, state = trained(norm, {}, state, x, cotangent, mask)
    skipped = int(state[BATCH_STATS]["skipped"])
    x, cotangent = rng.normal(size=(2, 4, 6, 8))
    before = state[BATCH_STATS]["mean_square"]
    y, _, _, after = trained(norm, {}, state, 1000.0 * x, cotangent, mask)
    slot = int(after[BATCH_STATS]["updates"]) % 4
    assert int(after[BATCH_STATS]["skipped"]) - skipped == is_filtering
    stays = np.array_equal(after[BATCH_STATS]["squares"][slot], before)
    assert stays == is_filtering
    if is_filtering:  # It is normalized by itself alone.
        wanted = x / np.sqrt(np.mean(np.square(x), axis=(0, 1)))
        np.testing.assert_allclose(y, wanted, rtol=1e-6)


@pytest.mark.parametrize("fields", [{"window": 0}, {"backward_window": -1}])
def test_refuses_an_empty_window(fields):
    with pytest.raises(ReslabError, match="window"):
        UnifiedNorm(**fields)
