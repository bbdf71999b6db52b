"""What a step costs each device as a slice grows, compiled for TPUs that are not there.

    python experiments/bench/weak_scaling.py --generation v5e v5p
    python experiments/bench/weak_scaling.py --plot

The whole training step of a preset, by default configs/pod_1b.py, with the same number
of sequences for every device, on slices of 8 to 512 chips; parameters are split over
all chips of a slice, and 512 v5e chips are two slices, each with a replica. FLOPs,
memory and bytes of collectives are those of one device; the bytes of a collective are
those of the whole array that it makes or splits. `analytic` is the count by hand:

    gathered   each kernel in bfloat16 once for the forward and once for the backward
               pass, which computes the layer again from the same copy; the embedding
               is split along its features and is not gathered
    reduced    the gradient of each kernel and of the embedding once, in bfloat16
    between    a device's share of that, the embedding's in float32, which replicas in
               several slices send each other by way of their hosts

On some slices the compiler adds up gradients by an all-reduce and keeps a part, which
sends twice what a reduce-scatter does: `reduced_by` says which. From 64 v5p chips on it
gathers by one, too, so that all its bytes are among those reduced. Every slice is
compiled; nothing is run or extrapolated. Rows whose `estimator` is "sum" were compiled
before estimates were a timeline, and have none; their bytes, memory and FLOPs do not
depend on it. Appends to weak_scaling.csv,
where a row of the same preset and slice is replaced; `--plot` draws it again from there
(with Chromium, which makes the picture from the chart's SVG).
"""

import argparse
import csv
import pathlib
import shutil
import subprocess
import sys
import tempfile

from reslab.core import config as configs
from reslab.core.trees import named_leaves
from reslab.observe import svg
from reslab.observe.charts import LineChart, Series
from reslab.observe.environment import environment
from reslab.parallel.aot.topology import topology
from reslab.parallel.mesh import make_mesh
from reslab.train.compiled import compile_configs
from reslab.train.state import make_setup

TABLE = pathlib.Path(__file__).with_suffix(".csv")
PICTURE = pathlib.Path(__file__).with_suffix(".png")
SLICES = {
    "v5e": (
        *("v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"),
        "2xv5e:16x16",
    ),
    "v5p": (
        *("v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4", "v5p:4x4x4", "v5p:4x4x8"),
        *("v5p:4x8x8", "v5p:8x8x8"),
    ),
}
FIELDS = (
    *("preset", "topology", "devices", "mesh", "tflops", "arguments_mib"),
    *("ideal_arguments_mib", "temporaries_mib", "peak_mib", "gathered_mb"),
    *("analytic_gathered_mb", "reduced_mb", "analytic_reduced_mb", "reduced_by"),
    *(
        "between_mb",
        "analytic_between_mb",
        "other_mb",
        "mfu_scheduled",
        "mfu_hidden",
        "compile_seconds",
        "jax",
        "libtpu",
    ),
    *("commit", "estimator"),
)


def prepared(preset: str, name: str, rows: int) -> tuple:
    """The config of a preset for a slice, and the slice."""
    config = configs.load(preset)
    target = topology(name)
    several = len({getattr(d, "slice_index", 0) for d in target.devices})
    changes = {
        "mesh.dcn_data": several,
        "mesh.data": several,
        "mesh.fsdp": len(target.devices) // several,
        "data.batch": rows * len(target.devices),
        "eval.batch": len(target.devices),
    }
    return configs.update(config, changes.items()), target


def analytic(config, target) -> dict[str, int]:
    """Bytes gathered, reduced, sent between slices, and of the state, by hand."""
    setup = make_setup(config, make_mesh(config.mesh, target.devices))
    params = named_leaves(setup.shapes.params)

    def matrices(*ends):
        return sum(leaf.size for name, leaf in params.items() if name.endswith(ends))

    kernels, embedding = matrices("/kernel", "head"), matrices("embedding")
    everything = sum(leaf.size for leaf in params.values())
    # Parameters and two moments, in float32.
    state = 3 * 4 * everything // config.mesh.fsdp
    shared = (2 * kernels + 4 * embedding) // config.mesh.fsdp
    return {
        "gathered": 2 * 2 * kernels,
        "reduced": 2 * (kernels + embedding),
        "between": shared * (config.mesh.dcn_data > 1),
        "state": state,
    }


def measured(preset: str, name: str, rows: int) -> dict[str, object]:
    """The row of a slice."""
    config, target = prepared(preset, name, rows)
    (report,) = compile_configs({preset: config}, name)
    by_hand = analytic(config, target)
    row = {
        "preset": preset,
        "topology": name,
        "devices": len(target.devices),
        "mesh": " ".join(f"{a}={s}" for a, s in report.mesh.items() if s > 1),
        "tflops": f"{report.counted_flops / 1e12:.2f}",
        "peak_mib": round(report.needed / 2**20),
        "analytic_gathered_mb": round(by_hand["gathered"] / 1e6),
        "analytic_reduced_mb": round(by_hand["reduced"] / 1e6),
        "analytic_between_mb": round(by_hand["between"] / 1e6, 1),
        "ideal_arguments_mib": round(by_hand["state"] / 2**20),
    }
    if report.memory is not None:
        row |= {
            "arguments_mib": round(report.memory.arguments / 2**20),
            "temporaries_mib": round(report.memory.temporaries / 2**20),
            "compile_seconds": round(report.compile_seconds),
        }
    if report.cost is not None:
        wires = report.cost.wires
        inside = {k.kind: t.bytes for k, t in wires.items() if k.axes == ("fsdp",)}
        ways = {kind: inside.get(kind, 0) for kind in ("reduce-scatter", "all-reduce")}
        gathered_here, reduced_here = inside.get("all-gather", 0), sum(ways.values())
        everything = sum(t.bytes for t in wires.values())
        between = sum(t.bytes for k, t in wires.items() if k.axes == ("data",))
        other = everything - gathered_here - reduced_here - between
        scheduled, hidden = report.estimated_mfu
        row |= {
            "gathered_mb": round(gathered_here / 1e6),
            "reduced_mb": round(reduced_here / 1e6),
            "reduced_by": max(ways, key=ways.get),
            "between_mb": round(between / 1e6, 1),
            "other_mb": round(other / 1e6),
            "mfu_scheduled": f"{scheduled:.2f}",
            "mfu_hidden": f"{hidden:.2f}",
        }
    return row


def read() -> list[dict[str, str]]:
    """The rows of the table so far."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def plot(rows: list[dict[str, str]]) -> None:
    """Draws the table: one chart for each figure, one line for each generation."""

    def series(field, factor=1.0):
        found = []
        for generation in SLICES:
            points = sorted(
                (int(row["devices"]), float(row[field]) * factor)
                for row in rows
                if f"{generation}:" in row["topology"] and row.get(field)
            )
            if points:
                found.append(Series(generation, *map(list, zip(*points, strict=True))))
        return found

    charts = [
        svg.draw(
            LineChart(
                series=series(field, factor),
                identifier=field,
                title=title,
                description=title,
                x_label="chips",
                y_label=unit,
                is_log_x=True,
            )
        )
        for field, factor, title, unit in (
            ("tflops", 1.0, "FLOPs of a step, per device", "TFLOP"),
            ("arguments_mib", 1 / 1024, "State, per device", "GiB"),
            ("peak_mib", 1 / 1024, "Peak memory, per device", "GiB"),
            ("gathered_mb", 1e-3, "Gathered by fsdp", "GB"),
            ("reduced_mb", 1e-3, "Reduced and scattered by fsdp", "GB"),
            ("mfu_hidden", 1.0, "Estimated MFU, all collectives hidden", "MFU"),
        )
    ]
    page = (
        "<!doctype html><meta charset='utf-8'><style>body{margin:16px;background:#fff;"
        "color:#222;font-family:sans-serif;display:grid;gap:20px;"
        "grid-template-columns:repeat(3,360px)}</style>" + "".join(charts)
    )
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        sys.exit(f"no Chromium to draw {PICTURE.name} with")
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "page.html"
        source.write_text(page)
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        subprocess.run(
            [
                *(browser, *flags, f"--user-data-dir={folder}/profile"),
                *("--window-size=1160,700", f"--screenshot={PICTURE}"),
                source.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
    print(f"picture  {PICTURE}")


def main() -> None:
    """Compiles, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="pod_1b")
    parser.add_argument("--generation", nargs="*", choices=SLICES, default=())
    parser.add_argument("--topology", nargs="*", metavar="SLICE", default=())
    parser.add_argument("--rows", type=int, default=8, help="sequences per device")
    parser.add_argument("--plot", action="store_true", help="draw what is there")
    options = parser.parse_args()
    about = environment()
    known = {name: about["versions"].get(name) for name in ("jax", "libtpu")}
    known |= {"commit": about["commit"], "estimator": "timeline"}
    wanted = [name for one in options.generation for name in SLICES[one]]
    for name in [*wanted, *options.topology]:
        row = measured(options.preset, name, options.rows) | known
        kept = [
            old
            for old in read()
            if (old["preset"], old["topology"]) != (options.preset, name)
        ]
        rows = sorted(
            [*kept, row],
            key=lambda r: (r["preset"], "v5p" in r["topology"], int(r["devices"])),
        )
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        print(
            "  ".join(f"{field}={row.get(field, '')}" for field in FIELDS), flush=True
        )
    if options.plot:
        plot(read())


if __name__ == "__main__":
    main()
