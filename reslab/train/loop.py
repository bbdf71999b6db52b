"""The training loop."""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import extension, own
from reslab.core.errors import ReslabError
from reslab.core.trees import count_parameters, named_leaves
from reslab.data.prefetch import prefetch
from reslab.observe.environment import environment
from reslab.observe.meter import Meter
from reslab.observe.metrics import check_writers
from reslab.observe.phases import Phases
from reslab.observe.profile import Profile
from reslab.observe.progress import progress
from reslab.optim.guard import parse_policy
from reslab.parallel.hosts import (
    asked_to_stop_together,
    check_same,
    is_writer,
    on_writer,
)
from reslab.parallel.mesh import device_bytes, make_mesh, place_on, use_mesh
from reslab.runtime.streams import readers_may_leave
from reslab.runtime.watchdog import Watchdog, watching
from reslab.train import identity
from reslab.train.changes import adopt, warn_of_machine
from reslab.train.checkpoint import Checkpoints, NotFinite, Restored
from reslab.train.continuation import inherited
from reslab.train.corpora import tokenized_once
from reslab.train.cost import training_flops_per_unit
from reslab.train.evaluate import EvaluationStopped, Evaluator
from reslab.train.finished import finished, result_of
from reslab.train.given import NOTHING, Given
from reslab.train.held import Held
from reslab.train.lines import Lines, begin_trackers
from reslab.train.memory import check_memory
from reslab.train.opening import opening
from reslab.train.probe import Prober
from reslab.train.run import Run
from reslab.train.state import Setup, TrainState, check_batch, make_setup
from reslab.train.step import HEALTH, make_step
from reslab.train.tasks import Batch, Batches, Task
from reslab.train.together import ALONE, Programs

_SLOWER = "a lower optim.learning_rate or a longer warmup"


class Diverged(ReslabError):
    """The loss or the gradient is no longer finite; that state is not saved."""


class _BadStep(Exception):
    """A step after which the run goes back."""

    def __init__(self, step: int, what: str):
        super().__init__(what)
        self.step = step


class Stopped(Exception):
    """The run was asked to stop; its state is saved."""

    def __init__(self, step: int):
        super().__init__(f"stopped and saved at step {step}")
        self.step = step


def prepare(
    config: ConfigDict,
    given: Given = NOTHING,
    began: Mapping[str, Any] = types.MappingProxyType({}),
) -> Setup:
    """Checks a config against its data and the devices; writes nothing.

    Args:
      config: The resolved config.
      given: What the caller gives in place of the config's.
      began: What a run that is resumed has recorded of its data.

    Returns:
      The setup, its data loaded.

    Raises:
      ReslabError: If anything does not fit.
    """
    configs.check(config)
    check_writers(config.train.writers)
    check_same("the config", configs.sha256(config))
    mesh = make_mesh(config.mesh)
    check_batch(config, mesh)
    setup = make_setup(config, mesh, given.task(config))
    check_memory(setup)
    record = setup.task.record()
    if began:
        identity.check_given(began, record)
    # Otherwise mistakes would be found only after the run has begun.
    if given or extension.is_used():
        batch = setup.task.batch_shapes(config.data.batch)
        with use_mesh(mesh), extension.held_to_protocols():
            jax.eval_shape(given.judged(setup) or make_step(setup), setup.shapes, batch)
    check_same("the corpus", json.dumps(identity.of_data(record)))
    return setup


@readers_may_leave()
def train(
    config: ConfigDict,
    directory: str | pathlib.Path,
    *,
    patience: float = 0.0,
    watchdog: float = 0.0,
    is_strict: bool = False,
    profile: str | None = None,
    after_step: Callable[[int], None] | None = None,
    at_end: Callable[[Task], None] | None = None,
    programs: Programs = ALONE,
    given: Given = NOTHING,
) -> dict[str, Any]:
    """Trains the run in a directory, or resumes it.

    Started again with the same config, a run continues from its newest
    checkpoint and ends bit for bit as if it had never been stopped.

    Args:
      config: The resolved config.
      directory: The run directory.
      patience: Seconds to wait for another process that has the directory.
      watchdog: Least seconds without a step after which the process ends itself; 0
        never does.
      is_strict: Whether a damaged newest checkpoint is an error; otherwise it is set
        aside, and the run resumes from the newest that is intact.
      profile: Steps to trace, as `reslab.observe.profile` takes them.
      after_step: Called with the number of every step, once it has been dispatched
        and what is due after it has begun.
      at_end: Called with the task, its data loaded, once this call has trained the run
        to its end.
      programs: Makes its compiled programs, which other runs may share.
      given: Batches, loss or step of the caller, in place of the config's.

    Returns:
      The run's result: step, held-out loss and bits per byte, tokens per second.

    Raises:
      ReslabError: On a mistake in the config.
      Diverged: If the loss or the gradient is not finite.
      Stopped: After SIGTERM or an interrupt, when the state has been saved.
      StorageFailed: If storage fails, or the run directory is no longer its own.
    """
    tracer = Profile(profile, config.train.steps, directory) if profile else None
    run = Run(pathlib.Path(directory))
    check_same("the config", configs.sha256(config))
    if (ended := on_writer(lambda: finished(run, config))) is not None:
        return _already(run, ended, tracer, given.record(config))
    with tokenized_once(run.directory):
        setup = prepare(config, given, on_writer(run.recorded).get("corpus", {}))
        batches = setup.task.train_batches()
    evaluator = Evaluator(setup, programs.sums(setup))
    found, pinned = None, None
    is_new = on_writer(lambda: not any(run.checkpoints.glob("[0-9]*")))
    if is_new and config.train.continue_from:
        # Also before anything is written.
        found, pinned = inherited(setup, on_writer(run.pinned))
    prober = Prober(setup, is_lenient=True) if config.probes.every else None
    about = describe(setup, programs.seeds, pinned)
    is_resumed = on_writer(lambda: run.open(config, about, patience))
    with contextlib.ExitStack() as stack:
        on_writer(lambda: stack.enter_context(run.lock(patience)))
        # The process that held the lock may have finished the run.
        if (ended := on_writer(lambda: result_of(run, config))) is not None:
            return _already(run, ended, tracer, about["corpus"])
        trackers = begin_trackers(run, config, is_resumed)
        if is_resumed and is_writer():
            warn_of_machine(run, about)
        stack.enter_context(contextlib.closing(batches))
        checkpoints = stack.enter_context(
            Checkpoints(
                run.checkpoints,
                keep=config.train.keep_checkpoints,
                keep_every=config.train.keep_every,
                every=config.train.checkpoint_every,
                identity=on_writer(lambda: run.identity(about["corpus"])),
            )
        )
        on_writer(run.mark_checkpoints)

        def newest() -> Restored:
            kept = checkpoints.restore_newest(setup.shapes, is_strict=is_strict)
            return _completed(setup, kept) or Restored(0, setup.init(found), 0)

        dog = stack.enter_context(watching(watchdog))
        begin = newest()
        if is_resumed:  # Its checkpoints are its own, or nothing is changed.
            on_writer(lambda: adopt(run, config))
        held = stack.enter_context(contextlib.closing(Held(run, setup.task.check_data)))
        phases = Phases(is_silent=not is_writer())
        if is_writer():
            lines = opening(setup, about["corpus"], run.directory, begin.step)
            print(*lines, sep="\n", file=sys.stderr)
        if tracer:
            tracer.check(begin.step)
            stack.callback(tracer.close)
        files = Lines(run, config, trackers) if is_writer() else Lines()
        stack.callback(files.close)
        trainer = _Trainer(
            *(setup, checkpoints, held, files, evaluator, prober, dog, tracer),
            *(after_step, phases, given.compiled(setup) or programs.step(setup)),
        )
        result = _finite(trainer.run(begin, newest, batches))  # A step may be skipped.
        files.sync()
        checkpoints.wait()
        held.check()
        on_writer(lambda: run.end(result, files.digests()))
    if at_end:
        at_end(setup.task)
    return result


def _completed(setup: Setup, kept: Restored | None) -> Restored | None:
    """Gives a checkpoint without an optimizer's state, as of an import, a fresh one."""
    return kept and dataclasses.replace(kept, state=setup.completed(kept.state))


def _already(
    run: Run, ended: dict[str, Any], tracer: Profile | None, data: Mapping[str, Any]
) -> dict[str, Any]:
    identity.check_given(run.recorded().get("corpus", {}), data)
    if tracer:
        tracer.check(ended["step"])
    if is_writer():
        tell = f"{run.directory} is already finished, at step"
        print(f"{tell} {ended['step']}", file=sys.stderr)
    return ended


def describe(
    setup: Setup, seeds: Sequence[int] = (), continued_from: Any = None
) -> dict[str, Any]:
    """Describes a run for `run.json`, besides its config.

    Args:
      setup: The run.
      seeds: Those that it trains together with, its own included, if any.
      continued_from: The checkpoint that its parameters are from, if any.
    """
    unit = setup.task.unit.removesuffix("s")
    return {
        "environment": environment(),
        "mesh": dict(setup.mesh.shape),
        "parameters": count_parameters(setup.shapes.params),
        "memory": {
            "parameters": device_bytes(setup.shapes.params),
            "optimizer state": device_bytes(setup.shapes.opt_state),
        },
        f"training_flops_per_{unit}": training_flops_per_unit(setup),
        "compute_dtype": jax.numpy.dtype(setup.model.dtype).name,
        "corpus": setup.task.record(),
        "headline": dataclasses.asdict(setup.task.headline),
        "unit": setup.task.unit,
        "units_per_example": setup.task.units_per_example,
        "parts": own.digests(configs.modules(setup.config)),
        **({"packed_seeds": [*seeds]} if seeds else {}),
        **({"continued_from": continued_from} if continued_from else {}),
    }


class _Trainer:
    """The loop's surroundings, so that the loop itself reads like prose."""

    def __init__(
        self,
        setup: Setup,
        checkpoints: Checkpoints,
        held: Held,
        files: Lines,
        evaluator: Evaluator,
        prober: Prober | None,
        dog: Watchdog,
        tracer: Profile | None,
        after_step: Callable[[int], None] | None,
        phases: Phases,
        step: Callable[..., Any],
    ):
        self._setup = setup
        self._config = setup.config
        self._checkpoints = checkpoints
        self._held = held
        self._files = files
        self._evaluator = evaluator
        self._prober = prober
        self._dog = dog
        self._after_step = after_step
        self._phase = phases
        self._policy = parse_policy(setup.config.train.on_bad_step)
        self._step = step
        self._is_told = False  # Whether a zero gradient was reported.
        # Devices of other processes do the same work.
        self._tracer = tracer if is_writer() else None

    def run(
        self, begin: Restored, newest: Callable[[], Restored], batches: Batches
    ) -> dict[str, Any]:
        """Steps to the end, going back where the policy says so.

        Args:
          begin: Where to start.
          newest: Gives the newest checkpoint, or the state of step 0.
          batches: The training batches.
        """
        times = 0
        while True:
            try:
                return self._steps(begin, batches)
            except Diverged:
                self._held.check()  # Changed data explain the difference.
                raise
            except _BadStep as bad:
                self._held.check()
                begin = newest()
                state = begin.state
                times = max(times, int(state.opt_state.rollbacks)) + 1
                if times > self._policy.limit:
                    raise Diverged(
                        str(bad), got=f"again after {self._policy.limit} rollbacks"
                    ) from None
                print(
                    f"{bad}; back to step {begin.step}, past the batch of that step",
                    file=sys.stderr,
                )
                count = state.opt_state.rollbacks
                count = jax.device_put(np.asarray(times, count.dtype), count.sharding)
                guard = state.opt_state._replace(rollbacks=count)
                begin = dataclasses.replace(
                    begin,
                    state=state._replace(opt_state=guard),
                    data_index=bad.step * self._config.data.batch + self._ahead,
                )

    def _steps(self, begin: Restored, batches: Batches) -> dict[str, Any]:
        """Steps to the end and evaluates on all held-out text."""
        state, start = begin.state, begin.step
        batches.state = begin.data_index
        # Batches skipped by rolling back.
        self._ahead = begin.data_index - start * self._config.data.batch
        self._files.go_back(start, begin.summary.get("files", {}))
        train, devices = self._config.train, self._setup.mesh.devices
        task = self._setup.task
        meter = Meter(
            self._config.data.batch * task.units_per_example,
            training_flops_per_unit(self._setup),
            devices.flat[0].device_kind,
            devices.size,
            unit=task.unit,
        )
        self._dog.feed()
        placed = prefetch(batches, place_on(self._setup.mesh))
        # A run killed between its last step and its result already has the row.
        previous, row = None, dict(begin.summary.get("row", {}))
        if (unwritten := begin.summary.get("unwritten")) is not None:
            found = self._evaluate(start, state)
            self._write(start, unwritten | found)
            row |= found
        with (
            contextlib.closing(placed),
            use_mesh(self._setup.mesh),
            asked_to_stop_together() as is_asked_to_stop,
            progress(train.steps, start, is_silent=not is_writer()) as bar,
        ):
            for step in range(start + 1, train.steps + 1):
                began = time.monotonic()
                batch = next(placed)
                self._probe(step - 1, state, batch, meter)
                with self._phase("compiling the step"):
                    if self._tracer:
                        state, metrics = self._tracer(step, self._step, state, batch)
                    else:
                        state, metrics = self._step(state, batch)
                # Waiting for the step before this one keeps the devices busy and
                # Python at most one step ahead of them.
                jax.block_until_ready(previous)
                if previous is not None:
                    self._judge(step - 1, previous)
                    self._dog.feed(time.monotonic() - began)
                previous = metrics
                meter.step()

                is_last = step == train.steps
                is_evaluated = is_last or step % train.eval_every == 0
                unwritten = None
                # The first step tells where a run begins.
                if is_evaluated or step == 1 or step % train.log_every == 0:
                    self._checkpoints.check()
                    row = self._row(step, metrics, meter)
                    average = meter.average() if is_last else {}
                    try:
                        if is_evaluated:
                            with meter.paused():
                                row |= self._evaluate(step, state, is_asked_to_stop)
                        self._write(step, row)
                    except EvaluationStopped:
                        unwritten = _finite(row)
                    bar.update(step, row)
                    row |= average
                is_stopping = is_asked_to_stop()
                if self._checkpoints.is_due(step) or is_last or is_stopping:
                    self._save(step, state, metrics, meter, row, unwritten)
                if self._after_step:
                    self._after_step(step)
                if is_stopping and (not is_last or unwritten is not None):
                    self._checkpoints.wait()
                    raise Stopped(step)
            self._probe(train.steps, state, next(placed), meter)
        self._dog.feed()
        if not row:  # The last checkpoint comes from an older version.
            row = self._evaluate(train.steps, state)
        return {**row, "step": train.steps}

    def _evaluate(
        self,
        step: int,
        state: TrainState,
        is_asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float]:
        """Evaluates on a sample, and at the last step also on all held-out data.

        Raises:
          EvaluationStopped: If the run was asked to stop meanwhile.
        """

        def is_stopping() -> bool:
            self._dog.feed()
            return is_asked_to_stop()

        self._dog.feed()
        batches = self._config.eval.batches
        with self._phase("evaluating"):
            found = self._evaluator(state.variables, batches, is_stopping=is_stopping)
        if step < self._config.train.steps:
            return found
        # The curve keeps to the sample of earlier evaluations.
        metric = self._setup.task.headline.metric
        sample = {f"eval_sample_{metric}": found[f"eval_{metric}"]}
        with self._phase("evaluating on all held-out data"):
            found = self._evaluator(state.variables, is_stopping=is_stopping) | sample
        self._check_finite(step, found, "eval_loss")
        return found

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        if self._files.metrics:
            self._files.metrics.write(step, row)

    def _probe(self, step: int, state: TrainState, batch: Batch, meter: Meter) -> None:
        """Evaluates the probes before the batch is trained on, where one is due."""
        train, every = self._config.train, self._config.probes.every
        if self._prober and (step % every == 0 or step == train.steps):
            # Otherwise the pause would hide the end of the step before.
            jax.block_until_ready(state)
            self._dog.feed()
            with meter.paused(), self._phase("measuring by depth"):
                found = self._evaluate_probes(state, batch)
                self._checkpoints.check()
                if self._files.probes:
                    self._files.probes.write(step, found)

    def _evaluate_probes(self, state: TrainState, batch: Batch) -> dict[str, Any]:
        assert self._prober is not None
        try:
            return self._prober(state, batch)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ReslabError(
                "the probes need more memory than there is",
                hint="a smaller probes.batch, fewer probes.names, or probes.every=0",
            ) from None

    def _row(self, step: int, metrics: Any, meter: Meter) -> dict[str, float]:
        self._judge(step, metrics)
        row, by_layer = _by_shape(metrics)
        if self._files.layers and by_layer:
            self._files.layers.write(step, by_layer)
        return row | meter.read()

    def _save(
        self,
        step: int,
        state: TrainState,
        metrics: Any,
        meter: Meter,
        row: Mapping[str, float],
        unwritten: Mapping[str, float] | None,
    ) -> None:
        """Saves a step.

        `unwritten` is the row of an evaluation that was stopped: a run that resumes
        from the checkpoint evaluates first.
        """
        self._judge(step, metrics)
        values, _ = _by_shape(metrics)
        summary: dict[str, Any] = {"row": _finite(row), "files": self._files.digests()}
        if unwritten is not None:
            summary["unwritten"] = unwritten
        self._dog.feed()
        with meter.paused():
            # A run resumes from a checkpoint with the metrics up to it.
            self._files.sync()
            self._held.check()
            try:
                self._checkpoints.save(
                    step,
                    state,
                    data_index=step * self._config.data.batch + self._ahead,
                    metrics=values,
                    summary=summary,
                    force=True,
                )
            except NotFinite as error:
                raise Diverged(str(error), hint=_SLOWER) from None

    def _judge(self, step: int, metrics: Any) -> None:
        """Reads the metrics of a step, which has been computed."""
        health = np.asarray(metrics[HEALTH])
        loss, norm, in_a_row, leaf = (float(value) for value in health)
        if step == 1 and norm == 0 and not self._is_told and is_writer():
            self._is_told = True
            print(
                "step 1: the gradient is exactly 0, nothing is learned from it; "
                "try: model.init_std, model.embedding_std or precision.compute=float32",
                file=sys.stderr,
            )
        policy, where = self._policy, ""
        if leaf >= 0:
            name = list(named_leaves(self._setup.shapes.params))[int(leaf)]
            where = f", first of all in the gradient of {name}"
        if policy.name == "halt":
            for name, value in (("loss", loss), ("gradient_norm", norm)):
                self._check_finite(step, {name: value}, name, where=where)
        elif policy.name == "rollback" and in_a_row:
            what = f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}{where}"
            raise _BadStep(step, what)
        elif policy.limit and in_a_row >= policy.limit:
            raise Diverged(
                f"step {step}: {in_a_row:.0f} bad steps in a row{where}",
                got=f"loss {loss:.4g}, gradient norm {norm:.4g}",
                hint="a lower optim.learning_rate, or on_bad_step='skip(limit=...)'",
            )

    def _check_finite(
        self, step: int, values: Mapping[str, float], *names: str, where: str = ""
    ) -> None:
        for name in names:
            if not math.isfinite(values[name]):
                raise Diverged(
                    f"step {step}: {name} is not finite{where}",
                    got=str(values[name]),
                    hint=_SLOWER,
                )


def _finite(row: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if math.isfinite(value)}


def _by_shape(metrics: Any) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics that are one number, and those that are one for each layer."""
    found = {k: v for k, v in jax.device_get(metrics).items() if k != HEALTH}
    return (
        {key: float(value) for key, value in found.items() if not value.ndim},
        {
            key.removeprefix("layers/"): value.tolist()
            for key, value in found.items()
            if value.ndim
        },
    )
