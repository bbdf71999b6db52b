"""The depth benchmark: every variant on problems that separate, one study a task."""

from reslab.study.benchmark.cases import cases
from reslab.study.benchmark.tasks import task
from reslab.study.declaration import Search, Study

# Each case has these; the baseline has as many again.
SEEDS = (0, 1, 2, 3, 4)


def get_study(name: str) -> Study:
    """Makes the study of a task.

    Args:
      name: The task.

    Returns:
      Its baseline, every variant in place of the baseline's, and the known answers of
      the task; each at the best of the same learning rates.

    Raises:
      ReslabError: If there is no such task.
    """
    one = task(name)
    known = tuple(answer.case for answer in one.answers if answer.case.fields)
    return Study(
        question=one.question,
        config="tiny",
        cases=(*cases(one.fields), *known),
        seeds=SEEDS,
        baseline="baseline",
        overrides=one.fields,
        extra_baseline_seeds=len(SEEDS),
        search=Search(factors=(0.5, 1.0, 2.0), seeds=(1000,)),
    )
