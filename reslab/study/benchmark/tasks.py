"""Tasks of the depth benchmark, and the answers that each must reproduce.

A task whose known answers do not come out may not judge anything: its cases would be
compared by a problem that no longer separates what it is there to separate.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import ReslabError, nearest
from reslab.study.algebra import Case

_BASELINE = Case("baseline", {})
_NEGATIVE = "gated_delta(heads=2, allow_negative_eigenvalues=True)"


@dataclasses.dataclass(frozen=True)
class Answer:
    """A figure that a task is known to show.

    Attributes:
      case: The case that shows it.
      metric: Held-out metric of its runs, whose mean is meant.
      above: Lower bound of the mean.
      below: Upper bound.
    """

    case: Case
    metric: str
    above: float = float("-inf")
    below: float = float("inf")

    @property
    def expected(self) -> str:
        """Says what must come out."""
        bounds = [f"above {self.above}"] if self.above > float("-inf") else []
        bounds += [f"below {self.below}"] if self.below < float("inf") else []
        return f"{self.metric} {' and '.join(bounds)}"


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem at a size that two cores train in minutes.

    Attributes:
      name: What it is called.
      question: What it asks of a case.
      fields: The config, apart from what a case changes.
      answers: What it must show before it may judge.
    """

    name: str
    question: str
    fields: Mapping[str, Any]
    answers: tuple[Answer, ...]


def _shared(steps: int) -> dict[str, Any]:
    return {
        "model.depth": 2,
        "model.mixer": "attention(heads=2, qk_norm='rms')",
        "model.scales_output_by_depth": False,
        "precision.compute": "float32",
        "optim.schedule": "cosine(warmup=20)",
        "train.steps": steps,
        "train.eval_every": steps // 10,
        "train.checkpoint_every": steps,
        "train.keep_checkpoints": 1,
        "probes.every": 0,
        "eval.batch": 256,
        "eval.batches": 1,
    }


def _graded(source: str, length: int, steps: int, **changes: Any) -> dict[str, Any]:
    return {
        **_shared(steps),
        "train.task": "graded",
        "data.source": source,
        "data.length": length,
        "data.batch": 64,
        "model.features": 64,
        "optim.learning_rate": 4e-3,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }


def _text(features: int, steps: int) -> dict[str, Any]:
    return {
        **_shared(steps),
        "model.features": features,
        "model.depth": 4,
        "data.length": 64,
        "data.batch": 16,
        "optim.learning_rate": 6e-3,
        "eval.batch": 64,
        "eval.batches": 8,
    }


def _answer(name: str, fields: Mapping[str, Any], metric: str, **bound: Any) -> Answer:
    return Answer(Case(f"known: {name}", dict(fields)), metric, **bound)


def _base(metric: str, **bound: Any) -> Answer:
    return Answer(_BASELINE, metric, **bound)


_TASKS = (
    Task(
        "recall",
        "Which value belonged to a key? One layer of attention fails, two solve it.",
        _graded("recall(pairs=8, keys=32)", 24, 300),
        (
            _base("error", below=0.05),
            _answer("one layer", {"model.depth": 1}, "error", above=0.4),
        ),
    ),
    Task(
        "hops",
        "Where do one or two steps along random edges lead? Each step needs depth.",
        _graded("hops(nodes=6, hops=2, queries=12)", 24, 400),
        (
            _base("error_hop_1", below=0.05),
            _base("error_hop_2", above=0.1),
            _answer("one layer", {"model.depth": 1}, "error_hop_1", above=0.5),
        ),
    ),
    Task(
        "parity",
        "What is the parity of all bits so far, up to twice the trained length?",
        _graded(
            "tracking(group='parity')",
            16,
            400,
            eval__length=32,
            model__features=32,
            optim__learning_rate=1e-2,
        ),
        (
            _base("error_fourth", above=0.3),
            _answer(
                "negative eigenvalues",
                {"model.mixer": _NEGATIVE, "model.depth": 1},
                "error_fourth",
                below=0.15,
            ),
        ),
    ),
    Task(
        "copy",
        "Which of the tokens were to be kept? Their places differ, so that content has "
        "to decide.",
        _graded("selective_copy(symbols=8, count=4)", 24, 300),
        (
            _base("error", below=0.05),
            _answer(
                "fixed window", {"model.mixer": "short_convolution"}, "error", above=0.4
            ),
        ),
    ),
    Task(
        "deep",
        "Do sixteen layers train at all? Recall, where two would be enough.",
        _graded(
            "recall(pairs=4, keys=16)",
            12,
            300,
            model__depth=16,
            optim__learning_rate=3e-3,
            probes__every=300,
            probes__names=("stream", "gradient"),
        ),
        (
            _base("error", below=0.2),
            _answer(
                "post-norm, embedding 0.02",
                {
                    "model.placement": "post",
                    "model.post_embedding_norm": "none",
                },
                "error",
                above=0.4,
            ),
        ),
    ),
    Task(
        "memory",
        "How many of 2,048 random facts are learned, in bits for each parameter?",
        _graded(
            "memory(facts=2048, symbols=64)",
            48,
            300,
            data__batch=32,
            model__features=32,
            optim__learning_rate=1e-2,
        ),
        (
            _base("error", above=0.3),
            _answer(
                "an eighth of the facts",
                {"data.source": "memory(facts=256, symbols=64)"},
                "error",
                below=0.1,
            ),
        ),
    ),
    Task(
        "facts",
        "Are facts of two hops composed that were never seen together?",
        _graded(
            "facts(symbols=12, seen=0.8)",
            3,
            400,
            data__batch=256,
            model__features=32,
            optim__learning_rate=6e-3,
        ),
        (_base("error_trained", below=0.1), _base("error_no_second", above=0.7)),
    ),
    Task(
        "text",
        "How well are the bytes of source code predicted by four layers of width 64?",
        _text(64, 300),
        # Trigram counts have 2.549.
        (_base("bpb", below=2.549),),
    ),
    Task(
        "text_wide",
        "How well are the bytes of source code predicted by four layers of width 128?",
        _text(128, 600),
        (_base("bpb", below=2.2),),
    ),
)
TASKS: Mapping[str, Task] = {one.name: one for one in _TASKS}


def task(name: str) -> Task:
    """Returns the task of a name.

    Raises:
      ReslabError: If no task has it.
    """
    if name not in TASKS:
        raise ReslabError(
            f"no task {name!r} of the benchmark",
            expected=", ".join(TASKS),
            hint=nearest(name, TASKS),
        )
    return TASKS[name]
