"""Power: what a study finds, and the seeds that an effect needs."""

import numpy as np
import pytest
from scipy import stats

from reslab.cli import main
from reslab.core.errors import ReslabError
from reslab.study.family import Spread
from reslab.study.power import of_study, power, seeds_for
from reslab.study.results import read_results


def test_the_power_of_one_paired_comparison_is_that_of_the_t_test():
    spread = Spread(noise=1.0, seed=4.0, freedom=10)
    found = power(spread, 2.0, cases=1, seeds=6, baseline_seeds=6, repeats=600)
    shift = 2.0 / np.sqrt(2 / 6)
    edge = stats.t.ppf(0.975, 5)
    wanted = stats.nct.sf(edge, 5, shift)
    # The guard against unlike spreads costs a little.
    assert wanted - 0.08 < found < wanted + 0.04


@pytest.mark.conformance
def test_half_the_spread_is_worth_more_seeds():
    wide, narrow = (Spread(v, 0.0, 20) for v in (1.0, 0.25))
    assert seeds_for(narrow, 2.0, 4) < seeds_for(wide, 2.0, 4)
    assert seeds_for(wide, 0.01, 1) is None


@pytest.mark.conformance
def test_the_command_tells_spread_and_seeds(tmp_path, study_writer, capsys):
    cases = {"base": {}, "other": {"model__placement": "post", "level": 2.2}}
    folder = study_writer(tmp_path / "s", cases, seeds=5, noise=0.03)
    assert main(["study", "power", str(folder), "--effect", "0.2", "0.002"]) == 0
    text = capsys.readouterr().out
    assert "Standard deviation within a seed: 0.0" in text
    assert "more than 50" in text.splitlines()[-1]
    assert float(text.splitlines()[-2].split("%")[0].split()[-1]) > 80


def test_a_study_that_shows_no_spread_is_one_line(tmp_path, study_writer, capsys):
    cases = {"base": {}, "other": {"model__placement": "post"}}
    folder = study_writer(tmp_path / "s", cases, seeds=1)
    assert main(["study", "power", str(folder)]) == 2
    assert "at least two finished seeds" in capsys.readouterr().err
    alone = study_writer(tmp_path / "t", {"base": {}}, seeds=4)
    with pytest.raises(ReslabError, match="a baseline and cases"):
        of_study(read_results([alone]))
