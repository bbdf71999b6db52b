"""Files that an imported run keeps of its checkpoint, beside the tensors."""

import pathlib
import shutil

from ml_collections import ConfigDict

from reslab.core import registry
from reslab.interop.base import tokens

FOLDER = "huggingface"
# One of them: how the tensors were named and stored.
NAMES = "names.json"


def carry(
    config: ConfigDict, source: pathlib.Path, directory: pathlib.Path
) -> ConfigDict:
    """Copies the files to a run that is made of another, if that has any.

    Args:
      config: The new run's config, as it is used.
      source: Directory of the other run.
      directory: Directory of the new run.

    Returns:
      The config to record: it names the copy of the tokenizer, wherever the run is.
    """
    folder = source / FOLDER
    if not (folder / NAMES).is_file():
        return config
    shutil.copytree(folder, directory / FOLDER)
    spec = config.data.tokenizer
    parsed = registry.parse(spec)
    path = pathlib.Path(str(parsed.arguments.get("path", "")))
    if path.parent != folder.absolute():
        return config
    arguments = {**parsed.arguments, "path": f"{FOLDER}/{path.name}"}
    recorded = config.copy_and_resolve_references()
    recorded.data.tokenizer = registry.spec_text(parsed.name, arguments)
    return recorded


def ends(directory: pathlib.Path) -> frozenset[int]:
    """The tokens that end a sequence of an imported model; none of another run.

    Args:
      directory: The run directory.

    Raises:
      ReslabError: If a file is damaged.
    """
    return tokens.ends(directory / FOLDER)


def find_tokenizer(config: ConfigDict, directory: pathlib.Path) -> None:
    """Makes the path of a tokenizer that a run keeps absolute, wherever the run is.

    Args:
      config: The config of the run, which is changed.
      directory: The run directory.
    """
    spec = config.data.tokenizer
    if not isinstance(spec, str):
        return
    parsed = registry.parse(spec)
    path = pathlib.PurePath(str(parsed.arguments.get("path", "")))
    if path.parts[:1] == (FOLDER,) and (directory / path).is_file():
        here = {"path": str(directory.absolute() / path)}
        arguments = {**parsed.arguments, **here}
        config.data.tokenizer = registry.spec_text(parsed.name, arguments)
