"""`reslab train --profile`: steps that are traced, and what is refused."""

import subprocess
import sys

import pytest
from jax.profiler import ProfileData

import reslab.core.config as configs
from reslab.core.errors import ReslabError
from reslab.observe.profile import Profile


@pytest.mark.parametrize(
    "steps", ["10", "3:2", "0:4", "5:13", "1-4", "a:b", "2:", "-1:2"]
)
def test_steps_that_are_none_are_refused(steps, tmp_path):
    with pytest.raises(ReslabError, match=f"--profile {steps}: expected") as error:
        Profile(steps, 12, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.conformance
def test_a_run_is_traced_where_it_was_asked(tmp_path, small_config):
    config = configs.canonical_json(small_config(train__steps=4))
    (tmp_path / "config.json").write_text(config)
    run = tmp_path / "run"

    def train(steps):
        # Once libtpu has compiled for an absent TPU, tracing ends the process.
        command = [sys.executable, "-m", "reslab.cli", "train", "--from-run", tmp_path]
        command += ["--run", run, "--profile", steps]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    ended = train("3:9")
    assert ended.returncode == 2
    assert "--profile 3:9: expected steps from 1 to 4" in ended.stderr
    assert not run.exists()
    ended = train("2:3")
    assert ended.returncode == 0, ended.stderr
    (trace,) = (run / "profile").rglob("*.xplane.pb")
    assert _steps(trace) == [2, 3]
    ended = train("2:3")
    assert ended.returncode == 2
    assert "resumes from step 4" in ended.stderr


def _steps(trace):
    planes = ProfileData.from_file(str(trace)).planes
    events = (
        event for plane in planes for line in plane.lines for event in line.events
    )
    return [dict(event.stats)["step_num"] for event in events if event.name == "train"]
