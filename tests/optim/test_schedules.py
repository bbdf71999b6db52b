import json
import math

import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError


def values(spec, steps):
    schedule = registry.make("schedules", spec, steps=steps)
    return [float(schedule(step)) for step in range(steps)]


@pytest.mark.parametrize("name", registry.names("schedules"))
def test_schedules_rise_to_one_and_never_exceed_it(name):
    found = values(f"{name}(warmup=4)", 40)
    np.testing.assert_allclose(found[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    assert max(found) <= 1 + 1e-6
    assert min(found) >= 0


@pytest.mark.parametrize("name", registry.names("schedules"))
def test_a_run_shorter_than_its_warmup_warms_up_in_half_of_it(name):
    with pytest.warns(UserWarning, match="8 steps have no room for warmup=8: .* in 4"):
        found = values(f"{name}(warmup=8)", 8)
    assert found == values(f"{name}(warmup=4)", 8)
    with pytest.raises(ReslabError, match="warmup"):
        registry.make("schedules", f"{name}(warmup=-1)", steps=9)


def test_cosine():
    found = values("cosine(final=0.1)", 10)
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * t / 10)) for t in range(10)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_linear():
    np.testing.assert_allclose(
        values("linear(final=0.5)", 10), np.linspace(1, 0.5, 11)[:10], rtol=1e-6
    )


def test_constant():
    assert values("constant", 5) == [1.0] * 5


def test_wsd_is_stable_and_then_falls():
    found = values("wsd(warmup=2, decay=0.2)", 20)
    assert found[1:16] == [1.0] * 15
    np.testing.assert_allclose(found[16:], [1.0, 0.75, 0.5, 0.25], rtol=1e-6)


@pytest.mark.parametrize("spec", ["wsd(decay=1.5)", "wsd(warmup=3, decay=0.9)"])
def test_a_decay_that_does_not_fit_is_refused(spec):
    with pytest.raises(ReslabError, match="decay"):
        registry.make("schedules", spec, steps=10)


@pytest.mark.parametrize(
    "key, shape",
    [
        ("infinite_cosine", "cosine"),
        ("infinite_inv_sqrt", "inverse_sqrt"),
    ],
)
def test_infinite_is_gpt_neoxs(golden, key, shape):
    arrays = golden("schedules_neox")
    settings = json.loads(str(arrays["hp_json"]))["dev"]
    steps, peak = settings["N"], settings["start_lr"]
    cooldown, warmup = settings["cooldown_iters"], settings["warmup_iter"]
    annealing = steps - warmup - cooldown - settings["constant_iters"]
    schedule = registry.make(
        "schedules",
        f"infinite(warmup={warmup}, cooldown={cooldown / steps}, "
        f"anneal={annealing / steps}, plateau={settings['constant_lr'] / peak}, "
        f"final={settings['min_lr'] / peak}, shape={shape!r}, "
        f"sharpness={float(settings['timescale'])})",
        steps=steps,
    )
    found = [float(schedule(step)) for step in range(warmup, steps + 1)]
    wanted = arrays[f"dev_{key}"][warmup:] / peak
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize(
    "key, spec",
    [
        ("cosine", "cosine(warmup=20, final=0.1)"),
        ("cosine", "rewarmed(warmup=20, cycles=1)"),
        ("linear", "linear(warmup=20, floor=0.1)"),
        ("exponential", "exponential(warmup=20, floor=0.1)"),
    ],
)
def test_one_fall_is_gpt_neoxs(golden, key, spec):
    arrays = golden("schedules_neox")
    settings = json.loads(str(arrays["hp_json"]))["dev"]
    assert settings["warmup_iter"] == 20 and settings["N"] == 300
    np.testing.assert_allclose(settings["min_lr"], 0.1 * settings["start_lr"])
    schedule = registry.make("schedules", spec, steps=300)
    found = [float(schedule(step)) for step in range(20, 301)]
    wanted = arrays[f"dev_{key}"][20:] / settings["start_lr"]
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_each_cycle_warms_up_again():
    found = values("rewarmed(warmup=4, cycles=2)", 41)
    one = values("rewarmed(warmup=4, cycles=1)", 20)
    np.testing.assert_allclose(found[:20], one, rtol=1e-6)
    np.testing.assert_allclose(found[20:24], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    assert found[19] < 0.2 and found[40] < 0.2
    with pytest.raises(ReslabError, match="cycles"):
        registry.make("schedules", "rewarmed(cycles=9)", steps=8)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("infinite(cooldown=0.9)", "leave room"),
        ("infinite(final=0.6)", "final <= plateau"),
        ("infinite(shape='cosin')", "'cosine'"),
    ],
)
def test_mistakes_of_infinite(spec, words):
    with pytest.raises(ReslabError) as caught:
        registry.make("schedules", spec, steps=100)
    assert words in str(caught.value)
