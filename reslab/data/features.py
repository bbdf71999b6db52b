"""The features of a prepared TFDS dataset, checked before TFDS imports them."""

import json
from collections.abc import Iterator
from typing import Any

from etils import epath
from tensorflow_datasets.core import naming

from reslab.core.errors import ReslabError

_OWN = "tensorflow_datasets.core.features."
# Keys that hold a class name, in present and older forms.
_KEYS = ("pythonClassName", "python_class_name", "type")


def check_dataset(what: str, name: str, directory: str) -> None:
    """Checks that a dataset makes TFDS import nothing but its own code.

    `features.json` names a class of every feature, which TFDS imports by that name;
    a name with a namespace refers to foreign code.

    Args:
      what: The source, for errors.
      name: Name of the dataset; empty where `directory` is the dataset itself.
      directory: The directory that holds it, or datasets of many names.

    Raises:
      ReslabError: If a class is not one of TFDS's features, or the name has a
        namespace.
    """
    folder, files = epath.Path(directory).expanduser(), []
    if name:
        own, options = naming.parse_builder_name_kwargs(name)
        if own.namespace or options.keys() - {"config", "version"}:
            raise ReslabError(
                f"{what}: name", expected="a dataset of TFDS's own", got=repr(name)
            )
        if directory:  # All configs and versions; TFDS selects one.
            for pattern in ("*/features.json", "*/*/features.json"):
                files += (folder / own.name).glob(pattern)
    else:
        files = [folder / "features.json"]
    for file in files:
        for found in _classes(_read(what, file)):
            if not found.startswith(_OWN):
                raise ReslabError(
                    f"{what}: {file} names the class {found!r}",
                    expected="features of TFDS alone: others are code that is run",
                )


def _read(what: str, file: Any) -> Any:
    try:
        return json.loads(file.read_text(), object_pairs_hook=list)
    except FileNotFoundError:
        return []  # TFDS reports that there is no dataset.
    except (OSError, ValueError, RecursionError) as error:
        raise ReslabError(f"{what}: {file}", expected="JSON", got=str(error)) from None


def _classes(value: Any) -> Iterator[str]:
    """The class names in a JSON value, whose objects are lists of their pairs."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple):
            key, value = value
            if key in _KEYS and isinstance(value, str):
                yield value
        if isinstance(value, list):
            waiting.extend(value)
