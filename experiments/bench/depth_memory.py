"""What every residual costs in depth, compiled for a TPU that is not there.

    python experiments/bench/depth_memory.py
    python experiments/bench/depth_memory.py --residual attnres 'attnres(block=6)'

Loss and gradient of a language model, width 1024, 4,096 tokens on one v5e chip,
bfloat16 compute, float32 parameters, layers scanned and computed again in the backward
pass, at 24 and at 48 layers: memory of temporaries, bytes moved to and from memory
(loops counted as often as they run), an estimate of the step over that of `plain`, and
the processor's time to compile. Every residual of the folder comes with its defaults
and with what EXTRA adds; a row of the same residual and depth is replaced.
`falls_short` names the columns that are above what is aimed at (AIMS). The estimate is
that of `reslab compile`, and good for ratios only: a timeline of the compiled schedule,
every Pallas kernel by its own (`reslab/parallel/aot/cost.py`). `unknown` counts loops
and kernels whose length could not be read. Another libtpu compiles other programs. Rows
whose `estimator` is "sum" were compiled before the timeline, and have no estimate.
"""

import argparse
import csv
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.observe.environment import environment
from reslab.ops.depth_attention.rows_tpu import RowsKernel
from reslab.parallel.aot.estimate import estimate
from reslab.parallel.aot.program import OutOfMemory, compile_program
from reslab.parallel.aot.topology import Topology, topology
from reslab.parallel.mesh import batch_sharding, make_mesh, tree_sharding, use_mesh
from reslab.train.compiled import ATTENTION, causal_share

TABLE = pathlib.Path(__file__).with_suffix(".csv")
DEPTHS = (24, 48)
WIDTH, BATCH, LENGTH = 1024, 4, 1024

# What is worth a row beside the defaults of a residual.
EXTRA = {
    "attnres": ("attnres(block={eighth})",),
    "delta_attnres": ("delta_attnres(block={eighth})",),
    "hyper": ("hyper(is_dynamic=True)",),
}
# What is aimed at, by column: for every residual, and for some of them.
AIMS = {"temporaries_to_half": 2.1, "compile_to_half": 1.3}
AIMS_OF = {
    ("attnres", 24): {"step_to_plain": 1.6},
    ("attnres", 48): {"temporaries_mib": 3 * 1024},
    ("attnres(block={eighth})", 24): {"step_to_plain": 1.12},
    ("attnres(block={eighth})", 48): {"step_to_plain": 1.12},
}


def specs(depth: int) -> Iterator[str]:
    """Every residual, `plain` first, and what is added to it."""
    for name in sorted(registry.names("residuals"), key=lambda name: name != "plain"):
        yield name
        for form in EXTRA.get(name, ()):
            yield form.format(eighth=2 * depth // 8)


def kernel_shares(spec: str, depth: int) -> dict[str, float]:
    """How much of what kernels do under a condition they do in these programs.

    The mask of attention empties blocks. A kernel over a history takes its sources in
    blocks, and passes over those of which none is read yet: a layer reads those before
    it, the end all. Where one block holds them all, it computes on all.
    """
    shares = {ATTENTION: causal_share(LENGTH)}
    residual = registry.make("residuals", spec, depth=depth, sublayers=2)
    if not getattr(residual, "is_history", False):
        return shares
    # What a sublayer of attention residuals sees; the others write once a layer.
    tables = getattr(residual, "tables", None)
    visible = sorted(tables.visible if tables else [*range(1, depth + 1)] * 2)
    read, rows = visible[::2], visible[-1] + 1
    kernel = RowsKernel(rows, 1, WIDTH, jnp.bfloat16)
    turns = [-(-max(1, limit) // kernel.chunk) for limit in [*read, rows]]
    return shares | {"depth_": statistics.mean(turns) / kernel.chunks}


def measured(spec: str, depth: int, chip_name: str) -> dict[str, object]:
    """The figures of one residual at one depth."""
    target = topology(chip_name)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, target.devices[:1])
    block = "reversible" if spec == "reversible" else "standard"
    model = LanguageModel(
        vocabulary_size=256,
        features=WIDTH,
        depth=depth,
        mixer="attention(heads=8)",
        residual=spec,
        block=block,
        max_length=LENGTH,
        remat="full",
        dtype=jnp.bfloat16,
    )

    def loss(params, tokens):
        nll, _ = model.apply({"params": params}, tokens, tokens, method="losses")
        return jnp.mean(nll)

    with use_mesh(mesh):
        boxed = jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        )["params"]
        params = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            unbox(boxed),
            tree_sharding(boxed, mesh),
        )
        tokens = jax.ShapeDtypeStruct(
            (BATCH, LENGTH), jnp.int32, sharding=batch_sharding(mesh)
        )
        lowered = jax.jit(jax.value_and_grad(loss)).lower(params, tokens)
    row = {"residual": spec, "layers": depth}
    # The compiler has one thread; what else the machine does is not in its time.
    begin = time.process_time()
    try:
        program = compile_program(lowered)
    except OutOfMemory as exceeded:
        return row | {"temporaries_mib": f"does not fit: {exceeded}"}
    row["temporaries_mib"] = round(program.memory.temporaries / 2**20)
    row["compile_seconds"] = round(time.process_time() - begin, 1)
    if program.text is not None:
        row |= estimated(program.text, spec, depth, target)
    return row


def estimated(text: str, spec: str, depth: int, target: Topology) -> dict[str, object]:
    """The figures that the text of the compiled program has."""
    cost = estimate(text, target, shares=kernel_shares(spec, depth))
    return {
        "hbm_gib": round(cost.hbm_bytes / 2**30, 1),
        "estimated_ms": round(1000 * cost.seconds, 1),
        "unknown": cost.unknown_loops + cost.unknown_kernels,
    }


FIELDS = (
    *("residual", "layers", "temporaries_mib", "temporaries_to_half", "hbm_gib"),
    *("estimated_ms", "step_to_plain", "compile_seconds", "compile_to_half"),
    *("falls_short", "unknown", "topology", "jax", "libtpu", "commit", "estimator"),
)


def read() -> list[dict[str, str]]:
    """The rows of the table so far."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def ratio(row, other, field) -> str:
    """One figure over another's, or nothing."""
    try:
        return f"{float(row[field]) / float(other[field]):.2f}"
    except (KeyError, TypeError, ValueError):
        return ""


def write(rows: list[dict[str, object]]) -> None:
    """Writes the table, with ratios to `plain` and to half the depth."""
    shapes = {(_form(row), int(row["layers"])): row for row in rows}
    for row in rows:
        depth = int(row["layers"])
        half = shapes.get((_form(row), depth // 2), {})
        plain = shapes.get(("plain", depth), {})
        row["temporaries_to_half"] = ratio(row, half, "temporaries_mib")
        row["compile_to_half"] = ratio(row, half, "compile_seconds")
        # Other estimators (a sum, before the timeline) have other errors.
        is_alike = row["estimator"] == plain.get("estimator")
        row["step_to_plain"] = ratio(row, plain, "estimated_ms") if is_alike else ""
        aims = AIMS | AIMS_OF.get((_form(row), depth), {})
        row["falls_short"] = " ".join(
            f"{field}>{most}"
            for field, most in aims.items()
            if row.get(field) and not _is_within(row[field], most)
        )
    rows.sort(
        key=lambda row: (row["residual"] != "plain", _form(row), int(row["layers"]))
    )
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def _is_within(figure, most) -> bool:
    """Whether a figure is one, and no larger."""
    try:
        return float(figure) <= most
    except ValueError:
        return False


def _form(row) -> str:
    """A residual's spec, with its blocks as eighths of the depth."""
    eighth = str(2 * int(row["layers"]) // 8)
    return str(row["residual"]).replace(f"block={eighth}", "block={eighth}")


def main() -> None:
    """Compiles, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--residual", nargs="*", metavar="SPEC")
    parser.add_argument("--layers", nargs="*", type=int, default=DEPTHS)
    parser.add_argument("--topology", default="v5e:2x2")
    options = parser.parse_args()
    about = environment()
    known = {
        "topology": options.topology,
        "jax": about["versions"]["jax"],
        "libtpu": about["versions"]["libtpu"],
        "commit": about["commit"],
        "estimator": "timeline",
    }
    for depth in options.layers:
        for spec in options.residual or specs(depth):
            spec = spec.format(eighth=2 * depth // 8)
            try:
                row = measured(spec, depth, options.topology) | known
            except ReslabError as error:
                print(f"{spec}: {error}", file=sys.stderr)
                continue
            rows: list = [
                old
                for old in read()
                if (old["residual"], int(old["layers"])) != (spec, depth)
            ]
            write([*rows, row])
            print("  ".join(f"{row.get(f, '')}" for f in FIELDS), flush=True)


if __name__ == "__main__":
    main()
