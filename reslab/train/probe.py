"""Probes on a run's model and optimizer, during training or afterwards."""

import contextlib
import dataclasses
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import extension, registry
from reslab.core.errors import ReslabError
from reslab.core.layout import layouts
from reslab.core.taps import TAPS
from reslab.observe.phases import Phases
from reslab.observe.probes import quantities
from reslab.observe.probes._view import CannotAnswer, View
from reslab.observe.watch import watching_stream_gradient
from reslab.observe.writers import jsonl
from reslab.parallel.compiler import compiler_options
from reslab.parallel.hosts import is_writer
from reslab.parallel.mesh import batch_parts, make_mesh, place_on, replicated, use_mesh
from reslab.runtime.files import write_whole
from reslab.runtime.inside import check_links
from reslab.runtime.text import aligned
from reslab.train.checkpoint import Checkpoints
from reslab.train.memory import check_memory
from reslab.train.run import Run
from reslab.train.state import Setup, TrainState, check_batch, make_setup
from reslab.train.step import (
    apply_optimizer,
    gradient_in_parts,
    step_key,
    training_objective,
)
from reslab.train.tasks import Batch


class Prober:
    """Computes probes of a train state, in a program of its own.

    The training step is not touched: it is the same program, and gives the same
    numbers, with and without probes. The model is looked at in its scanned form,
    which compiles fast at any depth, on held-out examples that stay the same, so
    that steps and runs can be compared; gradients and updates are those of the
    training batch that comes next.

    Args:
      setup: Model, optimizer and config.
      specs: Spec strings of the probes; those of the config if None.
      is_lenient: Whether probes that the model cannot answer are left out, with a
        line on standard error for each.

    Raises:
      ReslabError: If a probe is named twice, or the model cannot answer one.
    """

    def __init__(
        self,
        setup: Setup,
        specs: Sequence[str] | None = None,
        *,
        is_lenient: bool = False,
    ):
        config = setup.config
        specs = config.probes.names if specs is None else specs
        self._probes = {}
        for spec in specs:
            name = registry.parse(spec).name
            if name in self._probes:
                raise ReslabError(f"probe {name!r} is named twice", got=repr(spec))
            self._probes[name] = registry.make("probes", spec)
        self._unanswered: dict[str, ReslabError] = {}
        self._setup = setup
        self._model = setup.model
        if hasattr(setup.model, "is_unrolled"):
            self._model = setup.model.clone(is_unrolled=False)
        shared = batch_parts(setup.mesh)
        rows = shared * math.ceil(config.probes.batch / shared)
        windows = setup.task.validation_batches(rows)
        self._held_out = place_on(setup.mesh)(next(windows))
        options = compiler_options(setup.mesh.devices.flat[0].platform)
        self._evaluate = jax.jit(
            self._all, out_shardings=replicated(setup.mesh), compiler_options=options
        )
        with use_mesh(setup.mesh):
            # Reports questions that the model cannot answer now, not at the first
            # evaluation.
            held_out = jax.eval_shape(lambda: self._held_out)
            batch = {
                key: jax.ShapeDtypeStruct(
                    (config.data.batch, *rows.shape[1:]), rows.dtype
                )
                for key, rows in held_out.items()
            }
            jax.eval_shape(self._all, setup.shapes, batch, held_out)
        for error in self._unanswered.values():
            if not is_lenient:
                raise error
            if is_writer():
                print(f"warning: {error}", file=sys.stderr)
        for name in self._unanswered:
            del self._probes[name]

    def __call__(self, state: TrainState, batch: Batch) -> dict[str, Any]:
        """Evaluates probes on a state.

        Args:
          state: The train state.
          batch: The training batch that comes next.

        Returns:
          `<probe>/<quantity>`: nested lists of numbers by depth.
        """
        with use_mesh(self._setup.mesh):
            found = jax.device_get(self._evaluate(state, batch, self._held_out))
        return {name: np.asarray(values).tolist() for name, values in found.items()}

    def _all(self, state: TrainState, batch: Batch, held_out: Batch) -> dict[str, Any]:
        # Probes measure depth, not precision: they may mix dtypes.
        with jax.numpy_dtype_promotion("standard"):
            view = self._view(state, batch, held_out)
            found = {}
            for name, probe in self._probes.items():
                try:
                    answers = probe(view)
                except Exception as error:
                    self._unanswered[name] = _unanswered(name, error)
                    continue
                found |= {f"{name}/{key}": values for key, values in answers.items()}
            return found

    def _view(self, state: TrainState, batch: Batch, held_out: Batch) -> View:
        setup, params, task = self._setup, state.params, self._setup.task

        def forward():
            _, taps = task.features(
                self._model, state.variables, held_out, mutable=[TAPS]
            )
            return taps.get(TAPS, {})

        def forward_alone():
            # Attention and states keep to documents.
            ids = held_out["segment_ids"]
            number = jax.numpy.arange(1, ids.shape[1] + 1, dtype=ids.dtype)
            alone = {
                "positions": jax.numpy.zeros_like(held_out["positions"]),
                "segment_ids": jax.numpy.where(ids > 0, number[None], ids),
            }
            _, taps = task.features(
                self._model, state.variables, {**held_out, **alone}, mutable=[TAPS]
            )
            return taps.get(TAPS, {})

        def loss():
            total, sums, _ = task.loss_sums(self._model, state.variables, held_out)
            return total / jax.numpy.maximum(sums[task.unit], 1)

        def gradient(slots, sites):
            scanned = dataclasses.replace(setup, model=self._model)
            objective = training_objective(scanned)

            def watched(tree, *others):
                with watching_stream_gradient(tree["slots"], sites):
                    return objective(tree["params"], *others)

            parts = setup.config.train.accumulate
            tree = {"params": params, "slots": slots}
            gradient = gradient_in_parts(watched, parts)
            key = step_key(setup.config.seed, state.step)
            found, _, _ = gradient(tree, state.model_state, batch, key)
            return found["params"], found["slots"]

        def read_out(x) -> jax.Array:
            logits: Any = self._model.apply(state.variables, x, method="read_out")
            return logits

        is_counted, is_first = task.tokens(self._model, held_out)
        return View(
            params=params,
            layouts=layouts(setup.boxed_params),
            opt_state=state.opt_state,
            is_counted=is_counted,
            is_first=is_first,
            forward=forward,
            read_out=read_out,
            loss=loss,
            gradient=gradient,
            update=lambda gradients: apply_optimizer(setup, gradients, state, batch)[0],
            forward_alone=forward_alone if "segment_ids" in held_out else None,
        )


def _unanswered(name: str, error: Exception) -> ReslabError:
    """The error for a person, of a probe that gave none."""
    if not isinstance(error, ReslabError):
        explained = extension.explain(error)
        first = (str(error).strip().splitlines() or [""])[0]
        reason = explained or f"{type(error).__name__}: {first}"
    else:
        reason = error
    return CannotAnswer(
        f"probe {name!r}: {reason}",
        hint="leave it out of probes.names, or probes.every=0",
    )


def inspect_run(
    directory: str | pathlib.Path,
    specs: Sequence[str] | None = None,
    step: int | None = None,
) -> list[dict[str, Any]]:
    """Evaluates probes on the checkpoints of a run and records the results.

    The results go to `inspect.jsonl` in the run directory, one line a step; those of
    the same probes at the same step are replaced. Nothing else is changed.

    Args:
      directory: The run directory.
      specs: Spec strings of the probes; all that the model can answer if None.
      step: Step to evaluate; every kept checkpoint if None.

    Returns:
      The records, in order of step.

    Raises:
      ReslabError: If the run has no such checkpoint, or cannot answer a probe.
    """
    run = Run(pathlib.Path(directory))
    check_links(run.directory)
    config = run.config()
    run.result()  # Raises if it does not belong to the run.
    # A single batch is made sooner than a worker begins.
    configs.update(config, [("data.workers", 0)])
    setup = _setup_here(config)
    check_memory(setup)
    identity = run.identity(setup.task.record())
    mesh = setup.mesh
    if specs is None:
        specs = _answerable(setup)
        if not specs:
            raise ReslabError(
                f"{run.directory}",
                expected="a model that probes can measure",
                got=config.model.name,
            )
    prober = Prober(setup, specs)
    records = []
    with Checkpoints(
        run.checkpoints, is_read_only=True, identity=identity
    ) as checkpoints:
        steps = checkpoints.steps() if step is None else (step,)
        if not steps:
            raise ReslabError(
                f"{run.checkpoints} has no checkpoint",
                hint="train first, or check the path",
            )
        phase = Phases(is_silent=not is_writer())
        for one in steps:
            restored = checkpoints.restore(setup.shapes, one)
            with contextlib.closing(setup.task.train_batches()) as batches:
                batches.state = restored.data_index
                batch = place_on(mesh)(next(batches))
            with phase(f"measuring step {one}"):
                state = setup.completed(restored.state)
                records.append({"step": one, **prober(state, batch)})
    _merge(run.directory, records)
    return records


def _setup_here(config: ConfigDict) -> Setup:
    """The run's setup on its own mesh; on one device where that does not fit."""
    try:
        mesh = make_mesh(config.mesh)
        check_batch(config, mesh)
        return make_setup(config, mesh)
    except ReslabError:
        return make_setup(config, make_mesh({}, jax.devices()[:1]))


def _answerable(setup: Setup) -> list[str]:
    """The probes that a model can answer."""
    found = []
    for name in registry.names("probes"):
        try:
            Prober(setup, [name])
        except CannotAnswer:
            continue
        found.append(name)
    return found


def _merge(directory: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Merges records with earlier ones of the same steps."""
    name = "inspect.jsonl"
    steps: dict[int, dict[str, Any]] = {}
    if (directory / name).is_file():
        steps = {record["step"]: record for record in jsonl.read(directory / name)}
    for record in records:
        steps[record["step"]] = {**steps.get(record["step"], {}), **record}
    lines = (jsonl.line(step, steps[step]) for step in sorted(steps))
    write_whole(directory / name, "".join(lines))


def table(record: Mapping[str, Any]) -> str:
    """One evaluation as text, a table for each axis; matrices are left out."""
    titles = quantities()
    lines = [f"step {record['step']}"]
    for axis in ("site", "sublayer", "layer"):
        columns = {
            name: record[name]
            for name in titles
            if name in record and titles[name].axis == axis
        }
        depths = max((len(values) for values in columns.values()), default=0)
        if not depths:
            continue
        rows = [(axis, *columns)]
        for depth in range(depths):
            cells = (
                f"{values[depth]:.4g}" if depth < len(values) else ""
                for values in columns.values()
            )
            is_end = axis == "site" and depth == depths - 1
            rows.append(("end" if is_end else str(depth), *cells))
        lines += ["", *aligned(rows)]
    return "\n".join(lines)
