"""`reslab bench ops`: rows, and what it refuses."""

import csv
import io

import jax
import jax.numpy as jnp
import pytest

from reslab.cli import main
from reslab.commands.measurements import FIELDS
from reslab.ops import evidence
from reslab.ops.stream_mix import pallas_tpu


@pytest.mark.conformance
def test_rows_of_what_ran_here(capsys):
    command = ["bench", "ops", "--operation", "stream_mix", "--shape", "odd"]
    assert main(command) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["direction"] for row in rows] == ["forward", "both"]
    assert all(float(row["measured_us"]) > 0 for row in rows)
    assert {row["implementation"] for row in rows} == {"reference"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--operation", "stream"], "stream_"),
        (["--target", "v4"], "v5e"),
        (["--shape", "huge"], "odd"),
        (["--dtype", "int8"], "bfloat16 or float32"),
    ],
)
def test_unknown_names_are_one_line(capsys, arguments, message):
    assert main(["bench", "ops", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said


def test_a_wrong_kernel_has_no_speed(monkeypatch, capsys):
    right = pallas_tpu.stream_mix

    def wrong(*arguments):
        return jax.tree.map(lambda x: x + jnp.asarray(1e-3, x.dtype), right(*arguments))

    monkeypatch.setattr(pallas_tpu, "stream_mix", wrong)
    assert main(["bench", "ops", "--operation", "stream_mix"]) == 2
    printed = capsys.readouterr()
    assert not printed.out and "differs from its reference" in printed.err


def test_a_kernel_is_preferred_where_it_beats_the_least_of_xla():
    def row(implementation, dma, compute=""):
        return {
            "implementation": implementation,
            "dma_us": dma,
            "compute_us": compute,
        }

    xla = row("reference", "10")
    assert evidence.kernel_gain([xla, row("pallas", "8", "9")]) == pytest.approx(10 / 9)
    assert evidence.kernel_gain([xla, row("pallas", "8", "20")]) == pytest.approx(0.5)


def test_the_evidence_is_rows_of_the_bench():
    rows = evidence._rows()
    assert rows and set(rows[0]) == set(FIELDS)


@pytest.mark.parametrize(
    "operation, device, expected",
    [
        ("block_read", "TPU v5", "pallas"),
        ("block_read", "TPU v9", "pallas"),  # By all that are known.
        ("stream_mix", "TPU v6 lite", "reference"),
        ("delta_rule", "TPU v5 lite", "pallas"),
        ("delta_rule_of_channels", "TPU v5 lite", "pallas"),
        ("ssd", "TPU v5 lite", "pallas"),
        ("delta_rule_of_channels", "TPU v5p", "reference"),  # Only v5e was compiled.
        ("depth_sum", "TPU v5 lite", "reference"),  # Nothing is known.
    ],
)
def test_auto_goes_by_the_evidence(monkeypatch, operation, device, expected):
    monkeypatch.setattr(evidence, "_device_kind", lambda: device)
    assert evidence.preferred(operation) == expected


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path, capsys):
    out = tmp_path / "missing" / "rows.csv"
    assert main(["bench", "ops", "--out", str(out)]) == 2
    assert "expected a file in a directory" in capsys.readouterr().err
