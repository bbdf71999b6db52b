"""Models, training, samples and probes from Python: what the command line calls."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import config_files
from reslab.core.arguments import checked
from reslab.core.bounds import Count, NonNegative
from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.parallel.mesh import make_mesh
from reslab.train import loop, probe, sampling
from reslab.train.given import Given, Loss
from reslab.train.loaded import Loaded
from reslab.train.memory import check_memory
from reslab.train.restoring import check_language
from reslab.train.run import Run, default_directory
from reslab.train.state import Setup, make_setup
from reslab.train.step import Step
from reslab.train.tasks import Task

Config = ConfigDict | str | pathlib.Path
Changes = Mapping[str, Any] | None


class Trained(NamedTuple):
    """A run that has ended.

    Attributes:
      directory: The run directory, for `reslab.load`, `generate` and `inspect`.
      result: Its last figures, such as `eval_bpb`, held-out bits per byte.
      task: The task with the data that were loaded; None if the run had ended before.
    """

    directory: pathlib.Path
    result: dict[str, Any]
    task: Task | None


def resolved(config: Config, changes: Changes = None) -> ConfigDict:
    """Returns a config with some fields changed; what is given stays as it is.

    Args:
      config: A config, or the name or path of one, or a run directory.
      changes: Fields to set, by dotted name.
    """
    if isinstance(config, ConfigDict):
        found = configs.update(configs.load("base"), configs.flatten(config))
    elif (pathlib.Path(config) / "config.json").is_file():
        found = Run(pathlib.Path(config)).config()
    else:
        found = configs.load(str(config))
    return configs.update(found, (changes or {}).items())


@checked
def build(config: Config = "base", *, changes: Changes = None) -> Loaded:
    """Builds the model of a config, with parameters as at the first step of a run.

        model, params, tokenizer = reslab.build("tiny", changes={"model.depth": 2})
        logits = model.apply({"params": params}, tokens)

    Args:
      config: A config, or the name or path of one, or a run directory, whose config is
        read.
      changes: Fields to set, by dotted name.

    Returns:
      The model, its parameters and its tokenizer, which is None where the model reads
      no text; on the first device.

    Raises:
      ReslabError: If the config has a mistake, or the model does not fit in memory.
    """
    found = resolved(config, changes)
    configs.check(found)
    setup = make_setup(found, make_mesh({}, jax.devices()[:1]))
    check_memory(setup, is_training=False)
    make = jax.jit(lambda key: unbox(setup.model.init(key, *setup.task.example())))
    variables = dict(make(jax.random.key(found.seed)))
    params = variables.pop("params")
    state = {name: variables[name] for name in setup.shapes.model_state}
    return Loaded(setup.model, params, getattr(setup.task, "tokenizer", None), state)


@checked
def train(
    config: Config = "base",
    directory: str | pathlib.Path | None = None,
    *,
    changes: Changes = None,
    batches: Callable[[int], Any] | Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    loss: Loss | None = None,
    step: Callable[[Setup], Step] | None = None,
    watchdog: NonNegative = 0.0,
    is_strict: bool = False,
    profile: str | None = None,
) -> Trained:
    """Trains a model, or resumes its training, as `reslab train` does.

        trained = reslab.train("tiny", changes={"train.steps": 60})
        trained.result["eval_bpb"]

    Called again with the same arguments, it resumes a run from its last checkpoint,
    and returns the result of one that has ended.

    Args:
      config: A config, or the name or path of one, or a run directory, whose config is
        trained again.
      directory: The run directory; `runs/<name>-<digest of the config>` if None.
      changes: Fields to set, by dotted name.
      batches: Batches to train on: a function of the number of a batch, or an iterable;
        a resumed run skips the batches that it has seen. A batch of text is an
        array of tokens (`data.batch`, `data.length` + 1); or arrays by name, each
        (`data.batch`, `data.length`): `tokens`, `targets`, and where they differ from
        one document in every row, `positions`, `segment_ids`, `loss_mask`. On several
        hosts it holds the rows of this one.
      held_out: Batches to evaluate on, likewise, of any number of rows.
      loss: The loss that training minimizes the mean of, `loss(model, variables, batch,
        key)`, of every token (batch, length); held-out figures stay the cross-entropy.
      step: The training step: `step(setup)` returns a pure function `(state, batch) ->
        (state, metrics)`, such as `reslab.train.step.make_step(setup)`; `metrics` has
        at least `loss`.
      watchdog: Least seconds without a step after which the process ends itself; 0
        never does.
      is_strict: Whether a damaged newest checkpoint is an error.
      profile: Steps to trace, such as "10:13".

    Returns:
      The run directory and its result.

    Raises:
      ReslabError: If an argument or the config has a mistake, or the directory holds
        another run.
      reslab.train.loop.Diverged: If the loss or the gradient is not finite.
      reslab.train.loop.Stopped: After an interrupt, when the state has been saved.
    """
    found = resolved(config, changes)
    if directory is None:
        named = "model" if isinstance(config, ConfigDict) else str(config)
        name = config_files.short_name(named)
        directory = default_directory(name, found)
    tasks: list[Task] = []
    result = loop.train(
        found,
        directory,
        watchdog=watchdog,
        is_strict=is_strict,
        profile=profile,
        at_end=tasks.append,
        given=Given(batches, held_out, loss, step),
    )
    task = tasks[0] if tasks else None
    return Trained(pathlib.Path(directory), result, task)


@checked
def generate(
    source: Loaded | str | pathlib.Path,
    prompt: str | None = None,
    *,
    length: int | None = None,
    samples: Count = 1,
    stop: Sequence[str] = (),
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    exit: str = "none",
    threshold: float = 0.0,
    slots: int = 0,
    seed: int = 0,
) -> list[str]:
    """Samples text.

    Args:
      source: A run directory, a checkpoint of another library, or what `load` or
        `build` returned.
      prompt: Text to continue; a new document if None.
      length: Most tokens to add; None is 200, within the length of training.
      samples: Number of samples.
      stop: Texts before which a sample ends; the end of a document always ends it.
      temperature: 0 takes the most likely token each time.
      top_k: Number of most likely tokens kept; 0 keeps all.
      top_p: Probability kept, in (0, 1].
      exit: What ends the passes of a stack early ("latent", "entropy", "kl" or
        "halting").
      threshold: The change below which it does.
      slots: Samples that are continued at a time in stack `recursive`, each slot at a
        pass of its own; 0 is all at once.
      seed: Chooses the samples.

    Returns:
      The samples, each with the prompt before it.

    Raises:
      ReslabError: If `source` is no language model, or an option is out of range.
    """
    options: dict[str, Any] = {
        "prompt": prompt,
        "length": length,
        "samples": samples,
        "stop": stop,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "exit": exit,
        "threshold": threshold,
        "slots": slots,
        "seed": seed,
    }
    if isinstance(source, str | pathlib.Path):
        directory = pathlib.Path(source)
        is_run = (directory / "run.json").is_file()
        if is_run or not any(directory.glob("*.safetensors")):
            config = Run(directory).config()
            check_language(config, str(source))
            return sampling.sample_run(directory, config, **options)
        # Tables of other libraries, which a run does not need.
        from reslab.train.loading import load

        source = load(directory)
    if source.tokenizer is None:
        raise ReslabError("generate", expected="a language model", got="no tokenizer")
    return sampling.sample(
        source.model,
        source.variables,
        source.tokenizer,
        trained=source.model.max_length,
        ends=source.ends,
        **options,
    )


@checked
def inspect(
    run: str | pathlib.Path,
    probes: str | Sequence[str] | None = None,
    *,
    step: int | None = None,
) -> list[dict[str, Any]]:
    """Evaluates probes on the checkpoints of a run, layer by layer.

        record = reslab.inspect(trained.directory, ["stream"])[-1]
        record["stream/norm"]

    The results are also kept in `inspect.jsonl` in the run directory.

    Args:
      run: The run directory.
      probes: Spec strings of the probes, or one; all that the model can answer if None.
      step: Step to evaluate; every kept checkpoint if None.

    Returns:
      A record of each step: `step`, and `<probe>/<quantity>` with nested lists of
      numbers by depth.

    Raises:
      ReslabError: If the run has no such checkpoint, or cannot answer a probe.
    """
    # One name is a sequence of letters, too.
    return probe.inspect_run(run, [probes] if isinstance(probes, str) else probes, step)
