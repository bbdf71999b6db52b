"""Steps that give every case of a study the training FLOPs of its baseline."""

import contextlib

from reslab.core import config as configs
from reslab.runtime.files import scratch_directory
from reslab.runtime.stopping import asked_to_stop
from reslab.study.plan import Plan
from reslab.study.pool import Pool
from reslab.study.slots import Slots

# FLOPs of a step by the digest of a config: a sweep plans again after each stage.
_known: dict[str, int] = {}


def steps_at_equal_flops(plan: Plan) -> dict[str, int]:
    """Steps of the cases that have a baseline; schedules end with them.

        steps = steps[baseline] * flops[baseline] / flops,    to a whole number

    FLOPs are those of a training step's matrix products.

    Args:
      plan: The study, with the steps that its config says.

    Raises:
      ReslabError: If a case cannot be built.
      SweepStopped: If the process is asked to stop.
    """
    firsts = {run.case: run for run in reversed(plan.runs)}
    digests = {case: configs.sha256(run.config) for case, run in firsts.items()}
    with asked_to_stop() as stop, scratch_directory("reslab.budgets-") as scratch:
        pool = Pool(scratch, 1, scratch / "programs")
        slots = Slots(plan.directory, 1, plan.study.cores or 1, pool, stop)
        with contextlib.closing(pool):
            for case, run in firsts.items():
                if digests[case] not in _known:
                    answer = slots.check(0, (run,))
                    _known[digests[case]] = answer["flops_per_step"]
    steps = {}
    for case, base in plan.baselines.items():
        if base is not None:
            whole = firsts[base].config.train.steps * _known[digests[base]]
            steps[case] = max(1, round(whole / _known[digests[case]]))
    return steps
