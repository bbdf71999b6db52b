"""A run made from another: its parameters converted, ready to be trained on."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import registry
from reslab.core.depth import arrange_layers, block_layers
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState, check_updated, model_state_of
from reslab.core.trees import named_leaves, nested_leaves
from reslab.observe.phases import Phases
from reslab.parallel.mesh import make_mesh
from reslab.runtime.files import whole_directory
from reslab.train import kept
from reslab.train.checkpoint import Checkpoints
from reslab.train.loop import describe
from reslab.train.run import Run
from reslab.train.state import (
    Setup,
    TrainState,
    build_model,
    make_setup,
    restore_variables,
)


@dataclasses.dataclass(frozen=True)
class Transformed:
    """Outcome of a conversion.

    Attributes:
      step: Step of the checkpoint that was converted.
      changes: Fields of the config that changed, with their new values.
      logit_difference: Largest difference between a logit of the two models, in
        float32, on held-out text.
      largest_logit: Largest absolute logit of the first model there.
      tokens: Tokens that were compared.
    """

    step: int
    changes: dict[str, Any]
    logit_difference: float
    largest_logit: float
    tokens: int


def transform_run(
    name: str, run: str | pathlib.Path, out: str | pathlib.Path
) -> Transformed:
    """Converts the newest checkpoint of a run into a run of its own.

    The new run has the old one's config but for the fields that the conversion
    changes, and one checkpoint, of step 0: the converted parameters, a fresh
    optimizer and the first batch. So it can be evaluated and sampled from at once,
    and training it continues from those parameters, for the number of steps its config
    says. `transform.json` says where it comes from. The directory appears whole or
    not at all.

    Args:
      name: The transform, as a spec: its name, and arguments where it takes any.
      run: Directory of the run to convert; it is only read.
      out: Directory of the new run, which must not be there.

    Returns:
      What changed, and how far the two models differ.

    Raises:
      ReslabError: If the run cannot be converted, is no language model's, its corpus
        is another now, or `out` is taken.
    """
    source, out = Run(pathlib.Path(run)), pathlib.Path(out)
    build = registry.factory("transforms", name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReslabError(
            f"{out}", expected="a new directory", got="one that is not empty"
        )
    config = source.config()
    if registry.parse(config.model.name).name != "lm":
        raise ReslabError(
            f"transform {name} of {run}: model.name",
            expected="lm",
            got=repr(config.model.name),
        )
    setup = _setup(config)
    identity = source.identity(setup.task.record())
    with Checkpoints(
        source.checkpoints, is_read_only=True, identity=identity
    ) as checkpoints:
        step = checkpoints.latest_step()
        variables = restore_variables(checkpoints, setup, step)
    assert step is not None  # `restore_variables` raises if the run has none.
    check_updated(variables)

    fields = dict(configs.flatten(config))
    new_variables, changes = build(variables=variables, fields=fields)
    new_config = configs.update(configs.load("base"), configs.flatten(config))
    configs.update(new_config, changes.items())
    configs.check(new_config)
    new_setup = _setup(new_config)
    new_variables = _arranged(new_variables, new_setup)
    about = registry.module("transforms", registry.parse(name).name)
    if getattr(about, "STARTS_PARAMETERS", False):
        new_variables = _started(new_variables, new_setup)
    state = _fresh_state(new_setup, new_variables)
    phase = Phases()
    with phase("logits of the run"):
        before = _logits(setup, variables)
    with phase("logits of the new run"):
        after = _logits(new_setup, state.variables)
    difference = float(np.max(np.abs(before - after)))
    largest = float(np.max(np.abs(before)))
    if getattr(about, "KEEPS_LOGITS", False) and not difference <= 1e-3 * largest:
        raise ReslabError(
            f"{name}: the new model's logits are others",
            expected="no difference but rounding",
            got=f"{difference:.2g}, where the largest logit is {largest:.2g}",
            hint="see what the transform asks of norms and placements",
        )
    result = Transformed(
        step=step,
        changes=changes,
        logit_difference=difference,
        largest_logit=largest,
        tokens=before.shape[0] * before.shape[1],
    )
    with whole_directory(out) as directory:
        new_run = Run(directory)
        about = describe(new_setup)
        new_run.open(kept.carry(new_config, source.directory, directory), about)
        with Checkpoints(
            new_run.checkpoints,
            is_async=False,
            identity=new_run.identity(about["corpus"]),
        ) as checkpoints:
            checkpoints.save(0, state, data_index=0, force=True)
        origin = {
            "run": str(source.directory),
            "config_sha256": source.record()["config_sha256"],
            "step": step,
        }
        record = dataclasses.asdict(result) | {"transform": name, "source": origin}
        del record["step"]
        new_run.write("transform.json", record)
    return result


def _setup(config: ConfigDict) -> Setup:
    """Makes a setup on one device; checkpoints fit any mesh."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return make_setup(config, mesh)


def _arranged(variables: ModelState, setup: Setup) -> ModelState:
    """The variables with their layers in the scans that the new model has."""
    shapes = setup.shapes.variables
    old, new = block_layers(variables["params"]), block_layers(shapes["params"])
    if {k: tuple(v) for k, v in old.items()} == {k: tuple(v) for k, v in new.items()}:
        return variables
    return {
        name: arrange_layers(tree, old, shapes.get(name, {}), new)
        for name, tree in variables.items()
    }


def _started(variables: ModelState, setup: Setup) -> ModelState:
    """The variables, and for those that are not there the ones of a new model."""
    start = setup.init().variables
    leaves = {**named_leaves(start), **named_leaves(dict(variables))}
    return nested_leaves(leaves)


def _fresh_state(setup: Setup, variables: ModelState) -> TrainState:
    """The state of step 0 around what a model is applied to, which must fit.

    Raises:
      ReslabError: If they do not.
    """
    wanted, found = named_leaves(setup.shapes.variables), named_leaves(variables)
    for key in sorted(wanted.keys() | found.keys()):
        shapes = [
            f"{leaf.dtype.name}{leaf.shape}" if leaf is not None else "nothing"
            for leaf in (wanted.get(key), found.get(key))
        ]
        if shapes[0] != shapes[1]:
            raise ReslabError(
                f"the converted config does not fit {key}",
                expected=shapes[0],
                got=shapes[1],
            )
    placed = jax.tree.map(
        lambda leaf, shape: jax.device_put(leaf, shape.sharding),
        dict(variables),
        setup.shapes.variables,
    )
    params = placed["params"]
    optimizer_state = jax.jit(setup.optimizer.init)(params)
    model_state = model_state_of(placed)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer_state, model_state)


def _logits(setup: Setup, variables: ModelState) -> np.ndarray:
    """Logits of the first held-out windows, whatever the run computes in."""
    exact = configs.update(configs.load("base"), configs.flatten(setup.config))
    configs.update(exact, [("precision.compute", "float32")])
    model = build_model(exact, setup.task, jax.devices()[0].platform)
    rows = min(exact.eval.batch, 8)
    batch = next(setup.task.validation_batches(rows))
    with jax.default_matmul_precision("float32"):
        logits = jax.jit(model.apply)(
            variables,
            batch["tokens"],
            positions=batch["positions"],
            segments=batch["segment_ids"],
        )
    return np.asarray(logits)
