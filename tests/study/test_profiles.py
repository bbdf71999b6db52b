"""What probes measured against depth: lines first, on a scale that shows them."""

import json
import re

import numpy as np
import pytest

from reslab.observe.charts import Legend, LineChart
from reslab.observe.probes import quantities
from reslab.study import profiles
from reslab.study.report import write_report
from reslab.study.results import read_results


def measured(folder, name):
    results = read_results([folder])
    found = profiles.measured(results, quantities())
    return results, next(one for one in found if one.name == name)


def looks(folder, **values):
    """Writes probes of every run: steps and values by quantity, dots for slashes."""
    for number, path in enumerate(sorted(folder.glob("0*"))):
        rows = [
            {"step": step}
            | {
                key.replace("__", "/"): make(step, number)
                for key, make in values.items()
            }
            for step in (0, 25, 50, 75, 100)
        ]
        lines = (json.dumps(row) + "\n" for row in rows)
        (path / "probes.jsonl").write_text("".join(lines))


@pytest.fixture
def pair(tmp_path, study_writer):
    cases = {"pre": {}, "post": {"model__placement": "post"}}
    return study_writer(tmp_path / "s", cases)


def test_a_line_for_each_case_with_a_band_at_the_last_probe(pair):
    looks(pair, update__ratio=lambda step, run: [1 + run, 2 + step, 3 + 2 * run])
    results, one = measured(pair, "update/ratio")
    (figure,) = profiles.at_the_end(results, [one])
    (chart,) = figure.charts
    pre, post = chart.series
    assert (pre.name, post.name) == ("pre", "post")
    np.testing.assert_allclose(pre.y, [2, 102, 5])
    np.testing.assert_allclose(post.y, [5, 102, 11])
    # On a logarithmic axis, as the quantity says, the band is a factor.
    assert chart.is_log_y
    factor = np.exp(np.sqrt(np.log1p((np.array([1, 0, 2]) / pre.y) ** 2)))
    np.testing.assert_allclose(np.divide(pre.high, pre.y), factor)
    np.testing.assert_allclose(np.divide(pre.y, pre.low), factor)
    assert ["pre", "100", "1", "102", "0"] in figure.data.rows


def test_first_middle_and_last_probe_share_a_scale(pair):
    looks(pair, contribution__cosine=lambda step, run: [0.0, step / 100, -step / 200])
    results, one = measured(pair, "contribution/cosine")
    (figure,) = profiles.over_time(results, [one])
    *panels, key = figure.charts
    assert [panel.title for panel in panels] == ["step 0", "step 50", "step 100"]
    assert isinstance(key, Legend) and key.names == ["pre", "post"]
    assert {panel.y_range for panel in panels} == {(-0.5, 1.0)}
    assert not panels[0].is_log_y
    np.testing.assert_allclose(panels[1].series[0].y, [0, 0.5, -0.25])


def test_on_a_linear_axis_a_band_is_a_difference(pair):
    looks(pair, contribution__cosine=lambda step, run: [1.0 + run, 2, -3.0 - 2 * run])
    results, one = measured(pair, "contribution/cosine")
    (figure,) = profiles.at_the_end(results, [one])
    pre = figure.charts[0].series[0]
    np.testing.assert_allclose(np.subtract(pre.high, pre.y), [1, 0, 2])
    np.testing.assert_allclose(np.subtract(pre.y, pre.low), [1, 0, 2])


@pytest.mark.parametrize("name", ["update/ratio", "contribution/cosine"])
@pytest.mark.parametrize("first, is_left_out", [(1e6, True), (2.5, False)])
def test_the_first_place_does_not_set_the_scale(pair, name, first, is_left_out):
    key = name.replace("/", "__")
    looks(pair, **{key: lambda step, run: [first, 1.0, 2.0 + step / 100, 4.0]})
    results, one = measured(pair, name)
    for figure in (
        *profiles.at_the_end(results, [one]),
        *profiles.over_time(results, [one]),
        *profiles.depth_maps(results, [one]),
    ):
        assert ("0 lies outside" in figure.caption) == is_left_out
        assert ("pre 1e+06, post 1e+06" in figure.caption) == is_left_out
        chart = figure.charts[0]
        if isinstance(chart, LineChart):
            assert chart.y_range == (1.0, 4.0)
            (x, y, *_), *_ = chart.rows(chart.series[0])
            assert (x, y) == (0, None if is_left_out else first)
        else:
            assert (chart.scale.low, chart.scale.high) == (1.0, 4.0)
        # The numbers are all there.
        assert any(f"{first:.10g}" in row for row in figure.data.rows)


def test_a_model_without_depth_or_numbers_still_has_a_report(pair):
    looks(
        pair,
        update__ratio=lambda step, run: [3.0],
        stream__norm=lambda step, run: [1.0, None, None],
        contribution__cosine=lambda step, run: [0.0, 0.0],
        stream__variance=lambda step, run: [0.0, -1.0],
    )
    text = write_report([pair]).read_text()
    assert "nan" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_signs_have_colours_of_their_own(pair):
    looks(pair, contribution__cosine=lambda step, run: [-0.25, 0.5, 0.1])
    results, one = measured(pair, "contribution/cosine")
    (figure,) = profiles.depth_maps(results, [one])
    scale = figure.charts[0].scale
    assert (scale.low, scale.high) == (-0.5, 0.5)
    assert scale.colour(0.0) == "#f7f7f7"
    assert "white is zero" in figure.caption


def test_profiles_stand_before_maps(pair):
    text = write_report([pair]).read_text()
    places = [text.index(f'<section id="{name}">') for name in _ORDER]
    assert places == sorted(places)


_ORDER = ("answer", "depth", "depth-over-time", "depth-over-steps")


def test_what_was_measured_once_needs_no_map(pair):
    for path in pair.glob("0*/probes.jsonl"):
        row = {"step": 100, "update/ratio": [9.0, 1.0], "unknown/matrix": [[1.0, 2.0]]}
        path.write_text(json.dumps(row) + "\n")
    results = read_results([pair])
    found = profiles.measured(results, quantities())
    (profile,) = profiles.at_the_end(results, found)
    assert profile.charts[0].y_range == (1.0, 9.0)  # Of two places neither is left out.
    assert not profiles.over_time(results, found)
    (matrix,) = profiles.depth_maps(results, found)
    assert matrix.name == "unknown-matrix-over-steps"


def test_a_run_that_was_never_trained_shows_its_depth(tmp_path, run_writer):
    """As an import does, once it was looked into; a run under way does not."""
    run_writer(tmp_path / "a", 0, state="unfinished")
    row = {"step": 0, "stream/norm": [1.0, 2.0, 3.0]}
    (tmp_path / "a" / "probes.jsonl").unlink()
    (tmp_path / "a" / "inspect.jsonl").write_text(json.dumps(row) + "\n")
    with_rows = read_results([tmp_path / "a"])
    assert profiles.measured(with_rows, quantities()) == []
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    (tmp_path / "a" / "checkpoints" / "0").mkdir(parents=True)
    results, one = measured(tmp_path / "a", "stream/norm")
    (figure,) = profiles.at_the_end(results, [one])
    assert figure.charts[0].series[0].y == [1.0, 2.0, 3.0]
    assert "Mean over untrained runs" in figure.caption and "n = 1." in figure.caption
    text = write_report([tmp_path / "a"]).read_text()
    assert '<section id="depth">' in text and "No run was looked into" not in text
    assert "stream/norm" in (tmp_path / "a" / "report-depth.csv").read_text()
