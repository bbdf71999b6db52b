"""The meter and the progress display, on a clock that is set by hand."""

import io

import pytest

from reslab.observe.meter import PEAK_FLOPS, Meter
from reslab.observe.progress import progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_first_step_is_left_out(clock):
    meter = Meter(1000, 5.0, "cpu", 1, clock)
    assert meter.read() == {"elapsed_seconds": 0.0}
    clock.now += 60  # Compiling.
    meter.step()
    assert meter.read() == {"elapsed_seconds": 60.0}
    for _ in range(4):
        clock.now += 0.5
        meter.step()
    assert meter.read() == {
        "elapsed_seconds": 62.0,
        "tokens_per_second": 2000.0,
        "step_seconds": 0.5,
    }
    assert meter.average()["step_seconds"] == 0.5
    clock.now += 2
    meter.step()
    rates = meter.read()  # Since the last read alone.
    assert rates["step_seconds"] == 2.0
    assert meter.read() == {"elapsed_seconds": 64.0}


def test_nothing_is_known_before_the_second_step(clock):
    meter = Meter(1, 1.0, "cpu", 1, clock)
    assert meter.average() == {}
    meter.step()
    assert meter.average() == {}


def test_pauses_are_left_out(clock):
    meter = Meter(10, 1.0, "cpu", 1, clock)
    with meter.paused():
        clock.now += 7
    meter.step()
    clock.now += 1
    meter.step()
    with meter.paused():
        clock.now += 100
    clock.now += 1
    meter.step()
    assert meter.read()["step_seconds"] == 1.0
    assert meter.average()["step_seconds"] == 1.0
    assert meter.read()["elapsed_seconds"] == 109.0


def test_share_of_the_peak(clock):
    """At the peak of all chips together the share is one."""
    meter = Meter(1000, 4 * 197e9, "TPU v5 lite", 4, clock)
    meter.step()
    clock.now += 1
    meter.step()
    assert meter.read()["mfu"] == pytest.approx(1.0)


def test_peaks_are_plausible():
    assert all(1e13 < peak < 5e15 for peak in PEAK_FLOPS.values())


def show(clock, seconds, updates, **options):
    stream = io.StringIO()
    with progress(100, clock=clock, stream=stream, **options) as bar:
        for step, metrics in updates:
            bar.update(step, metrics)
            clock.now += seconds
    return stream.getvalue().splitlines()


def test_lines_are_few_with_the_first_and_the_last(clock):
    updates = [(step, {"loss": 1 / step}) for step in range(1, 101)]
    lines = show(clock, 1, updates, every=30)
    steps = [line.split("/")[0] for line in lines]
    assert steps == ["train 1", "train 31", "train 61", "train 91", "train 100"]
    assert lines[0] == "train 1/100  loss 1.0000"
    assert lines[1].endswith("ETA 1m09s")
    assert lines[-1] == "train 100/100  loss 0.0100"


def test_line_shows_what_there_is(clock):
    metrics = {"loss": 2.34567, "bpb": 3.3844, "tokens_per_second": 12345.6, "lr": 1.0}
    lines = show(clock, 1, [(50, metrics)], start=49, label="again")
    assert lines == ["again 50/100  loss 2.3457  bpb 3.384  12,346 tokens/s"]


def test_no_update_no_line(clock):
    assert show(clock, 1, []) == []


def test_the_last_line_is_shown_after_an_error(clock):
    stream = io.StringIO()
    with (
        pytest.raises(ZeroDivisionError),
        progress(9, clock=clock, stream=stream) as bar,
    ):
        bar.update(1, {})
        bar.update(2, {})
        raise ZeroDivisionError
    assert stream.getvalue().splitlines() == ["train 1/9", "train 2/9  ETA 0s"]


def test_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with progress(10, start=3, stream=stream, label="try") as bar:
        bar.update(10, {"loss": 0.5})
    text = stream.getvalue()
    assert "try" in text and "10/10" in text and "loss 0.5000" in text


def test_standard_output_stays_clean(capsys):
    with progress(2) as bar:
        bar.update(1, {"loss": 1.0})
    captured = capsys.readouterr()
    assert captured.out == "" and "train 1/2" in captured.err
