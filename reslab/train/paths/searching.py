"""Searches the paths of a run's examples, into a file that a later call continues."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from reslab.core.errors import ReslabError
from reslab.core.routes import Route, routing
from reslab.observe.progress import progress
from reslab.runtime.text import aligned
from reslab.train.paths import files
from reslab.train.paths.scores import Score, score_of
from reslab.train.paths.tree import Path, counts, search
from reslab.train.run import Run
from reslab.train.state import Setup
from reslab.train.tasks.graded import Graded
from reslab.train.tasks.language import Language


@dataclasses.dataclass(frozen=True)
class Request:
    """Options of a search.

    Attributes:
      samples: Number of examples, evenly spaced.
      simulations: Most paths to evaluate for each, beside the model's.
      split: Examples of "training" or "held_out".
      score: "correct", "probability", or the name of a module with `score`.
      prompt: First tokens of an example that do not count, as they are given.
      is_together: Whether all examples share one path, scored by the mean.
      seed: Chooses what is tried.
    """

    samples: int = 32
    simulations: int = 50
    split: str = "held_out"
    score: str = "probability"
    prompt: int = 0
    is_together: bool = False
    seed: int = 0


def search_run(
    setup: Setup, variables: Any, run: Run, file: pathlib.Path, request: Request
) -> list[dict[str, Any]]:
    """Looks for the path of every sample that is not in the file yet.

    Args:
      setup: The setup of a run, whose stack is `path`.
      variables: The variables of its model.
      run: The run.
      file: JSON lines: what was searched, then one sample each. It is written whole
        after every sample.
      request: The options of the search.

    Returns:
      The samples: `examples`, their numbers in the split; `path`, `score`, `base` (the
      score of the model) and `simulations`.

    Raises:
      ReslabError: If the file holds another search, or there are fewer examples.
    """
    groups = _groups(examples_of(setup.task, request.split), request)
    about = {
        "run": run.record()["config_sha256"],
        "corpus": setup.task.record()["sha256"],
        "depth": setup.model.depth,
        **dataclasses.asdict(request),
    }
    done = _done(file, about)
    evaluate = evaluator(setup, variables, request)
    with progress(len(groups), len(done), "search") as shown:
        for index in range(len(done), len(groups)):
            rng = np.random.default_rng([request.seed, index])
            found = search(
                setup.model.depth, evaluate(groups[index]), request.simulations, rng
            )
            done.append({"examples": groups[index], **found._asdict()})
            files.write(file, about, done)
            shown.update(index + 1, {})
    return done


def examples_of(task: Any, split: str) -> Any:
    """The examples of a split of a task of language.

    Raises:
      ReslabError: If the task is another.
    """
    if not isinstance(task, Language | Graded):
        raise ReslabError("search", expected="a language model", got="another task")
    return task.held_out_examples() if split == "held_out" else task.train_examples()


def evaluator(
    setup: Setup, variables: Any, request: Request
) -> Callable[[list[int]], Callable[[Path], float]]:
    """Makes the function from examples to the function from a path to its score.

    All paths are one program, which computes only the layers that a path names.
    """
    score: Score = score_of(request.score)
    examples = examples_of(setup.task, request.split)
    model, depth = setup.model, setup.model.depth

    @jax.jit
    def scored(variables, batch, layers, count):
        with routing(Route(layers, count)):
            logits = model.apply(
                variables,
                batch["tokens"],
                positions=batch["positions"],
                segments=batch["segment_ids"],
            )
        found = score(logits, batch)
        if found.shape != batch["tokens"].shape[:1]:
            raise ReslabError(
                f"score {request.score!r}",
                expected=f"an array of shape {batch['tokens'].shape[:1]}",
                got=f"shape {found.shape}",
            )
        return found

    def of_group(indices: list[int]) -> Callable[[Path], float]:
        rows = [examples[index] for index in indices]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        batch["loss_mask"] = batch["loss_mask"].astype(bool)
        batch["loss_mask"][:, : request.prompt] = False
        if not np.all(np.any(batch["loss_mask"], axis=1)):
            raise ReslabError(
                "prompt",
                expected="one after which tokens are scored in every sample",
                got=str(request.prompt),
            )

        def of_path(path: Path) -> float:
            # A path is at most twice as long as the model.
            layers = np.zeros(2 * depth, np.int32)
            layers[: len(path)] = path
            value = float(np.mean(scored(variables, batch, layers, len(path))))
            if not 0 <= value <= 1:
                raise ReslabError(
                    f"score {request.score!r}", expected="from 0 to 1", got=f"{value}"
                )
            return value

        return of_path

    return of_group


def table(about: dict[str, Any], done: list[dict[str, Any]]) -> str:
    """Lays scores and lengths out, then how often each layer is applied."""
    depth = about["depth"]
    lengths = [len(one["path"]) for one in done]
    kept = [one for one in done if one["score"] >= one["base"]]
    shorter = sum(len(one["path"]) < depth for one in kept)
    better = sum(one["score"] > one["base"] for one in done)
    rows = [
        ["", "model", "paths"],
        ["score", *(f"{np.mean([o[k] for o in done]):.4f}" for k in ("base", "score"))],
        ["layers applied", str(depth), f"{np.mean(lengths):.2f}"],
        ["shorter", "", f"{shorter} of {len(done)}"],
        ["better", "", f"{better} of {len(done)}"],
        ["paths evaluated", "", str(sum(one["simulations"] for one in done))],
    ]
    labels = np.array([counts(tuple(one["path"]), depth) for one in done])
    layers = [["layer", "skipped", "once", "twice"]]
    for layer in range(depth):
        shares = [np.mean(labels[:, layer] == times) for times in range(3)]
        layers.append([str(layer), *(f"{share:.2f}" for share in shares)])
    both = (aligned([tuple(row) for row in part]) for part in (rows, layers))
    return "\n\n".join(map("\n".join, both))


def _groups(examples: Any, request: Request) -> list[list[int]]:
    """Numbers of the examples, evenly spaced, in one group for each search."""
    if request.samples > len(examples):
        raise ReslabError(
            "samples",
            expected=f"at most {len(examples)}, the {request.split} examples",
            got=str(request.samples),
        )
    step = len(examples) / request.samples
    chosen = [int(index * step) for index in range(request.samples)]
    return [chosen] if request.is_together else [[index] for index in chosen]


def _done(file: pathlib.Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples of an earlier call of the same search."""
    if not file.exists():
        return []
    known, done = files.read(file)
    for key in sorted(about):
        if known.get(key) != about[key]:
            raise ReslabError(
                f"{file}: another search, whose {key} is {known.get(key)!r}",
                expected=repr(about[key]),
                hint="another --out",
            )
    return done
