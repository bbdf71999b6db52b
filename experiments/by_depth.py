"""What a study's runs look like inside, one line a case, as Markdown.

    python experiments/by_depth.py runs/2026-11-21-norms

Means over the finished runs of a case. Held-out bits per byte at the end and their
standard deviation; median tokens per second; loss spikes a run: logged training losses
more than a tenth above the median of the five logged before. From the last look: the
variance of the stream that the first and the last sublayer read, and the norm of the
gradient by all parameters of the first and of the last layer; where readings have
weights, the mean over sublayers that read several sources of the largest weight, and
the exponential of the entropy, which counts the sources that are in effect read.
"""

import argparse
import math
import statistics
from collections.abc import Sequence

import numpy as np

from reslab.core.errors import ReslabError
from reslab.study.results import Outcome, read_results

HEADER = ("case", "n", "bits per byte", "sd", "tokens/s", "spikes")
HEADER += ("variance, first", "variance, last", "gradient, first", "gradient, last")
HEADER += ("largest weight", "sources read")


def last_look(run: Outcome, name: str) -> np.ndarray | None:
    """A quantity as a run saw it last."""
    steps = [step for step, row in run.probes.items() if name in row]
    if not steps:
        return None
    return np.asarray(run.probes[max(steps)][name], np.float64)


def mean_of(runs: Sequence[Outcome], name: str, place: int) -> str:
    """The mean over runs of one place of a quantity by depth."""
    seen = [look[place] for run in runs if (look := last_look(run, name)) is not None]
    return f"{np.mean(seen):.3g}" if seen else ""


def weights(runs: Sequence[Outcome]) -> tuple[str, str]:
    """How sharp readings are: their largest weight, and sources in effect."""
    largest, effective = [], []
    for run in runs:
        look = last_look(run, "depth_weights/read")
        for row in np.abs(look) if look is not None else ():
            if np.count_nonzero(row) < 2:
                continue
            share = row / row.sum()
            largest.append(share.max())
            entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)))
            effective.append(math.exp(entropy))
    if not largest:
        return "", ""
    return f"{np.mean(largest):.2f}", f"{np.mean(effective):.1f}"


def row(case: str, runs: Sequence[Outcome]) -> list[str]:
    """The line of a case."""
    bits = [run.figure for run in runs if run.figure is not None]
    speeds = [value for run in runs for value in run.values("tokens_per_second")]
    return [
        case,
        str(len(runs)),
        f"{np.mean(bits):.3f}" if bits else "",
        f"{statistics.stdev(bits):.3f}" if len(bits) > 1 else "",
        f"{statistics.median(speeds):,.0f}" if speeds else "",
        f"{np.mean([run.loss_spikes for run in runs]):.1f}" if runs else "",
        # The last place is the end of the stream, which no sublayer reads.
        mean_of(runs, "stream/variance", 0),
        mean_of(runs, "stream/variance", -2),
        mean_of(runs, "gradient/norm", 0),
        mean_of(runs, "gradient/norm", -1),
        *weights(runs),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="the directory of a study's runs")
    try:
        results = read_results([parser.parse_args().study])
    except ReslabError as error:
        parser.exit(2, f"{error}\n")
    rows = [row(case, results.finished(case)) for case in results.cases]
    used = [i for i, name in enumerate(HEADER) if any(line[i] for line in rows)]
    for line in (HEADER, ["---"] * len(HEADER), *rows):
        print("| " + " | ".join(line[i] for i in used) + " |")


if __name__ == "__main__":
    main()
