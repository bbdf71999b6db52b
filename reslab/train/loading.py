"""A trained model in Python, from a run or a checkpoint of another library."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core.arguments import checked
from reslab.core.errors import ReslabError
from reslab.data.encoding import tokenizer_sha256
from reslab.interop.base import tokens
from reslab.train import kept
from reslab.train.checkpoint import Checkpoints
from reslab.train.importing import configured, divided_setup, understood
from reslab.train.loaded import Loaded
from reslab.train.memory import check_memory
from reslab.train.placing import expected_tensors, placed
from reslab.train.run import Run
from reslab.train.state import Setup, restore_variables


@checked
def load(
    path: str | pathlib.Path,
    *,
    changes: Mapping[str, Any] | None = None,
    mesh: Mapping[str, int] | None = None,
) -> Loaded:
    """Loads a language model from a run, or from a checkpoint of another library.

    It computes in the dtype of its parameters, whatever a run would on this hardware.

    Args:
      path: A run directory, or a directory with `config.json` and safetensors.
      changes: Fields of the config to set, by dotted name, such as
        `{"precision.compute": "bfloat16"}`.
      mesh: Sizes of the mesh that the parameters are divided over, such as
        `{"fsdp": 4, "tensor": 2}`; all devices along `fsdp` if None.

    Returns:
      The model, its parameters and its tokenizer.

    Raises:
      ReslabError: If it is neither, damaged or not supported.
    """
    directory = pathlib.Path(path)
    if not (directory / "run.json").is_file():
        found = understood(directory)
        setup = divided_setup(_exact(configured(found), changes), mesh)
        check_memory(setup, is_training=False)
        wanted = expected_tensors(found.source, found.family, setup)
        variables = placed(found.source, wanted, setup)
        ends = tokens.ends(directory)
        return _loaded(setup, variables, _tokenizer(setup, path), ends)
    run = Run(directory)
    config = _exact(run.config(), changes)
    setup = divided_setup(config, mesh)
    tokenizer = _tokenizer(setup, path)
    check_memory(setup, is_training=False)
    digest = tokenizer_sha256(tokenizer, config.data.tokenizer)
    identity = run.identity({"tokenizer_sha256": digest})
    with Checkpoints(run.checkpoints, is_read_only=True, identity=identity) as found:
        variables = restore_variables(found, setup)
    return _loaded(setup, variables, tokenizer, kept.ends(directory))


def _loaded(
    setup: Setup, variables: dict[str, Any], tokenizer: Any, ends: frozenset[int]
) -> Loaded:
    params = variables.pop("params")
    return Loaded(setup.model, params, tokenizer, variables, ends)


def _exact(config: ConfigDict, changes: Mapping[str, Any] | None) -> ConfigDict:
    """Computes in the dtype of the parameters, unless the changes say otherwise."""
    changes = changes or {}
    parameters = changes.get("precision.parameters", config.precision.parameters)
    return configs.update(config, {"precision.compute": parameters, **changes}.items())


def _tokenizer(setup: Setup, path: str | pathlib.Path) -> Any:
    tokenizer = getattr(setup.task, "tokenizer", None)
    if tokenizer is None:
        raise ReslabError(
            f"{path}", expected="a language model", got=setup.config.model.name
        )
    return tokenizer
