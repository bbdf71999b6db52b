"""Kernels compiled for TPUs that this machine need not have: bytes and schedules."""

import csv
import importlib.metadata
import pathlib

import pytest

from reslab.commands.compiled_kernels import TARGETS, compiled
from reslab.ops import catalogue
from reslab.parallel.aot.bundles import Schedule, dumped

RECORDED = pathlib.Path(__file__).parent / "bundles.csv"
# Bytes of forward and backward over the least that there can be.
MOST_BYTES = {
    "depth_read": 1.05,
    "depth_mix": 1.05,
    "block_read": 1.15,
    "stream_mix": 1.05,
}
SHAPES = ("llama_1b", "blocks_8", "layers_16", "last_of_4")


@pytest.mark.conformance
@pytest.mark.tpu_compile
@pytest.mark.slow
@pytest.mark.parametrize(
    "chip",
    [
        pytest.param(chip, marks=() if chip == "v5e" else pytest.mark.conformance)
        for chip in TARGETS
    ],
)
def test_bytes_and_bundles(chip):
    pytest.importorskip("libtpu")
    rows = compiled(
        tuple(MOST_BYTES), chip, SHAPES, implementations=["pallas"], directions=["both"]
    )
    assert {row.operation for row in rows} == MOST_BYTES.keys()
    for row in rows:
        assert row.bytes_ratio <= MOST_BYTES[row.operation], row
    version = importlib.metadata.version("libtpu")
    with RECORDED.open(newline="") as lines:
        recorded = {
            (line["operation"], line["shape"]): int(line["bundles_per_step"])
            for line in csv.DictReader(lines)
            if (line["libtpu"], line["device"]) == (version, chip)
        }
    if not recorded:
        pytest.skip(f"no bundles are recorded for libtpu {version}")
    for row in rows:
        before = recorded[row.operation, row.shape]
        assert row.bundles_per_step <= 1.05 * before, row


def test_a_schedule_is_read_by_depth(tmp_path):
    listing = [
        "     0   :  { %s1 = inlined_call_operand }",
        "   0x1 LB: > { %s2 = sphi 0 }",
        "   0x2 LB: >> { %v4 = vld [vmem:%s5] }",
        "   0x3   : > { %p3 = scmp.ge.s32 }",
        "   0x4 LB: >> { %v6 = vld [vmem:%s5] }",
        "   0x5   : >> { %v7 = vld [vmem:%s5] }",
        "   0x6   : { %s6 = sld }",
    ]
    path = tmp_path / "17-add_rms.1-63-final_bundles.txt"
    path.write_text("\n".join(listing))
    (
        tmp_path / "17-add_rms.1-70-final_hlo-static-per-bundle-utilization.txt"
    ).write_text("header\n" + "0 0 0 1 0 0 1 0 0 2 1\n" + "0 0 0 1 0 0 1 0 0 3 1\n")
    found = dumped(str(tmp_path))
    assert found == {"add_rms.1": Schedule(outside=2, step=2, loops=(1, 2), spills=5)}
    assert found["add_rms.1"].step_cycles(parts=4) == 2 + 4 * 3
    assert found["add_rms.1"].step_cycles(parts=4, chunks=2) == 2 + 4 * 2.5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("operation", catalogue.OPERATIONS)
def test_every_shape_has_a_block(operation):
    for dtype in ("bfloat16", "float32"):
        for case in catalogue.cases(operation, dtype):
            assert all(loop.steps and loop.parts for loop in case.loops), case.shape
