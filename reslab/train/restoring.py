"""Parameters of runs, as evaluation and sampling need them."""

import dataclasses
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from reslab.core.errors import ReslabError
from reslab.core.schema import source_family
from reslab.core.trees import unbox
from reslab.parallel.mesh import make_mesh
from reslab.train.checkpoint import Checkpoints
from reslab.train.memory import check_memory
from reslab.train.run import Run
from reslab.train.state import Setup, make_setup, restore_variables


def is_of_language(config: ConfigDict) -> bool:
    """Returns whether a config's model reads text."""
    return source_family(config.model.name, config.train.task) == "sources"


def check_language(config: ConfigDict, what: str) -> None:
    """Refuses runs of images or problems where text is needed.

    Raises:
      ReslabError: If the model is not a language model; `what` needs one.
    """
    if not is_of_language(config):
        got = f"{config.model.name} of {config.data.source}"
        raise ReslabError(what, expected="a language model", got=got)


def restore(
    directory: str | pathlib.Path, config: ConfigDict, devices: Any, record: Any = None
) -> tuple[Setup, dict[str, Any]]:
    """Restores the newest parameters and state of a run.

    Args:
      directory: The run.
      config: Its config.
      devices: Devices to restore on.
      record: What is compared of the data; None compares the corpus too.

    Returns:
      The setup, and the variables of its model.
    """
    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices)
    setup = make_setup(config, mesh)
    check_memory(setup, is_training=False)
    run = Run(pathlib.Path(directory))
    identity = run.identity(setup.task.record() if record is None else record)
    with Checkpoints(
        run.checkpoints, is_read_only=True, identity=identity
    ) as checkpoints:
        return setup, restore_variables(checkpoints, setup)


def with_stack(setup: Setup, spec: str) -> Setup:
    """Lays the layers of a setup's model out by another stack.

    Args:
      setup: The setup of a run.
      spec: Spec of the stack.

    Raises:
      ReslabError: If the model has no layers, or the stack has other parameters.
    """
    what = f"stack {spec!r}"
    if not hasattr(setup.model, "stack"):
        raise ReslabError(what, expected="a model with a stack of layers")
    model = setup.model.clone(stack=spec)
    example = setup.task.example()
    made = unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), *example)))

    def shapes(tree):
        return jax.tree.map(lambda leaf: leaf.shape, unbox(tree))

    if shapes(made["params"]) != shapes(setup.boxed_params):
        raise ReslabError(
            what, expected="a stack with the parameters of the run", got="others"
        )
    return dataclasses.replace(setup, model=model)
