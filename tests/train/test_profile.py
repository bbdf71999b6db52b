"""`reslab train --profile`: steps that are traced, and what is refused."""

import pathlib

import jax
import pytest

from reslab.core.errors import ReslabError
from reslab.observe.profile import Profile
from reslab.train import loop


@pytest.mark.parametrize(
    "steps", ["10", "3:2", "0:4", "5:13", "1-4", "a:b", "2:", "-1:2"]
)
def test_steps_that_are_none_are_refused(steps, tmp_path):
    with pytest.raises(ReslabError, match=f"--profile {steps}: expected") as error:
        Profile(steps, 12, tmp_path)
    assert "\n" not in str(error.value)


def test_a_run_is_traced_where_it_was_asked(tmp_path, monkeypatch, small_config):
    seen = []
    annotation = jax.profiler.StepTraceAnnotation

    def watched(name, step_num):
        seen.append(step_num)
        return annotation(name, step_num=step_num)

    monkeypatch.setattr(jax.profiler, "StepTraceAnnotation", watched)
    config = small_config(train__steps=4, train__eval_every=4)
    with pytest.raises(ReslabError, match="--profile 3:9: expected steps from 1 to 4"):
        loop.train(config, tmp_path / "run", profile="3:9")
    assert not (tmp_path / "run").exists()
    loop.train(config, tmp_path / "run", profile="2:3")
    assert seen == [2, 3]
    (trace,) = pathlib.Path(tmp_path / "run" / "profile").rglob("*.xplane.pb")
    assert b"train" in trace.read_bytes()
    with pytest.raises(ReslabError, match="goes on from step 4"):
        loop.train(config, tmp_path / "run", profile="2:3")
