"""Series: how they are cut and scaled, and tables that are none."""

import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data.series import load_series
from reslab.data.series.csv import Table
from reslab.data.series.waves import Waves

ETT = """date,HUFL,OT
2016-07-01 00:00:00,5.8,30.5
2016-07-01 01:00:00,5.7,27.7
2016-07-01 02:00:00,5.1,27.8
2016-07-01 03:00:00,5.0,25.0
2016-07-01 04:00:00,5.1,21.8
"""


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "series.csv"
        path.write_text(text)
        return Table(str(path))

    return write


def test_reads_the_layout_of_ett(table):
    series = table(ETT).load()
    assert series.names == ("HUFL", "OT") and series.held_out == 1
    np.testing.assert_array_equal(series.values[1], [5.7, 27.7])
    assert table(ETT.replace("\n", "\r\n")).load().values.shape == (5, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("27.8", ""), r"line 4, column 'OT': expected a finite number; got a missing"),
        (
            ("27.8", "NaN"),
            r"line 4, column 'OT': expected a finite number; got a missi",
        ),
        (("27.8", "inf"), r"line 4, column 'OT': expected a finite number; got 'inf'"),
        (("5.7", "high"), r"line 3, column 'HUFL': .* got 'high'; try: time='HUFL'"),
        (("date", "when"), r"line 2, column 'when': .* got '2016-07-01 00:00:00'"),
        (("5.1,27.8", "5.1"), r"line 4: expected 3 columns; got 2"),
        ((ETT, ""), r"expected a line of names, and lines of numbers; got 0 lines"),
        ((ETT, "date\n2016"), r"got 2 lines, 0 columns of numbers"),
    ],
)
def test_refuses_what_is_no_series(table, change, message):
    with pytest.raises(ReslabError, match=message):
        table(ETT.replace(*change)).load()


def test_refuses_what_is_no_file(tmp_path):
    with pytest.raises(ReslabError, match="expected a text file; got No such file"):
        Table(str(tmp_path / "none.csv")).load()
    path = tmp_path / "bytes.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReslabError, match="got bytes that are not UTF-8"):
        Table(str(path)).load()


def test_windows_and_scale():
    found = load_series("waves(steps=100, variates=3)", 10, 5)
    values = Waves(steps=100, variates=3).load().values
    mean, scale = values[:80].mean(0), values[:80].std(0)
    wanted = (values - mean) / scale
    assert (len(found.train), len(found.test)) == (66, 16)
    for windows, start in ((found.train, 0), (found.test, 70)):
        one = windows[2]
        now = start + 12
        np.testing.assert_allclose(one["history"], wanted[now - 10 : now], rtol=1e-5)
        np.testing.assert_allclose(one["target"], wanted[now : now + 5], rtol=1e-5)
    last = found.test[15]["target"]
    np.testing.assert_allclose(last, wanted[95:], rtol=1e-5)
    with pytest.raises(IndexError):
        found.test[16]


def test_a_constant_variate_is_zero(table, monkeypatch):
    monkeypatch.setattr(
        registry, "make", lambda family, spec: table("a,b\n1,2\n1,3\n1,4\n1,5\n1,6\n")
    )
    values = load_series("csv", 1, 1).train.values
    np.testing.assert_array_equal(values[:, 0], 0)


def test_refuses_a_series_that_is_too_short():
    with pytest.raises(ReslabError, match="expected 60 to train on and 10 held out"):
        load_series("waves(steps=20)", 50, 10)


def test_variates_follow_each_other():
    values = Waves(noise=0.0).load().values
    np.testing.assert_allclose(values[3:, 1], values[:-3, 0], atol=1e-12)
