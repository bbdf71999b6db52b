"""Every row of the drill, as often as each commit asks for it."""

import json
import time

import pytest

from reslab import drill as drills
from reslab.cli import main
from reslab.core.errors import ReslabError


@pytest.mark.conformance
def test_every_planted_fault_is_survived(tmp_path):
    outcomes = drills.drill(tmp_path / "drill", program=main)
    assert [outcome.row for outcome in outcomes] == [*drills.ROWS]
    assert {o.row: o.broken for o in outcomes if o.broken} == {}
    for outcome in outcomes:
        assert outcome.survived == outcome.injected == drills.ROWS[outcome.row][1]


def test_what_is_broken_is_counted(tmp_path, monkeypatch):
    def plant(workshop, count, chance):
        """Nothing breaks."""
        for number in range(count):
            yield "it broke" if number == 1 else None

    monkeypatch.setitem(drills.ROWS, "nothing", (plant, 3, 5))
    told = []
    (outcome,) = drills.drill(
        tmp_path / "drill", ["nothing"], tell=told.append, program=main
    )
    assert (outcome.survived, outcome.injected, outcome.broken) == (2, 3, ("it broke",))
    assert told == ["nothing    2/3  0 s\n  it broke"]
    (found,) = json.loads(drills.as_json([outcome]))
    assert found["promise"] == "Nothing breaks."
    (outcome,) = drills.drill(
        tmp_path / "drill", ["nothing"], is_nightly=True, program=main
    )
    assert outcome.injected == 5


def test_a_row_that_goes_on_says_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(drills, "TELL_EVERY", 0.0)

    def plant(workshop, count, chance):
        """Nothing breaks."""
        for _ in range(count):
            time.sleep(0.01)
            yield None

    monkeypatch.setitem(drills.ROWS, "nothing", (plant, 2, 2))
    told = []
    drills.drill(tmp_path / "drill", ["nothing"], tell=told.append, program=main)
    assert told == [
        "nothing    1/2, 0 s to go",
        "nothing    2/2, 0 s to go",
        "nothing    2/2  0 s",
    ]


def test_unknown_rows_are_refused(tmp_path):
    with pytest.raises(ReslabError, match="unknown row 'kil': try: 'kill'"):
        drills.drill(tmp_path / "drill", ["kil"], program=main)
    assert not (tmp_path / "drill").exists()
