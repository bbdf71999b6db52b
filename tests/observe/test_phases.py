"""Stages are named as they begin, and once."""

import pytest

from reslab.observe.phases import Phases


def test_a_stage_is_named_with_its_seconds_the_first_time(capsys):
    times = iter([10.0, 12.34])
    phase = Phases(clock=lambda: next(times))
    with phase("compiling"):
        assert capsys.readouterr().err == "compiling ...\n"
    assert capsys.readouterr().err == "compiling: 2.3 s\n"
    with phase("compiling"):
        pass
    assert capsys.readouterr().err == ""


def test_a_stage_that_fails_has_not_ended(capsys):
    with pytest.raises(KeyError), Phases()("compiling"):
        raise KeyError
    assert capsys.readouterr().err == "compiling ...\n"


def test_other_processes_are_silent(capsys):
    with Phases(is_silent=True)("compiling"):
        pass
    assert capsys.readouterr().err == ""
