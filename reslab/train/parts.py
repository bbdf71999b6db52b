"""Parts outside reslab that a run was begun with: their digests, and copies of them."""

import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import own
from reslab.core.errors import ReslabError
from reslab.runtime.files import make_directory, write_whole

FOLDER = "parts"


def check(
    began: Mapping[str, str], now: Mapping[str, str], directory: pathlib.Path
) -> None:
    """Checks that parts are those that a run was begun with.

    Args:
      began: Digests of their files when it was; older versions recorded none.
      now: Digests of their files.
      directory: The run directory.

    Raises:
      ReslabError: If a file has changed.
    """
    for name in began:
        if began[name] != now.get(name):
            raise ReslabError(
                f"{name} changed since {directory} was begun",
                expected=f"sha256 {began[name][:12]}",
                got=now.get(name, "no such file")[:12],
                hint=f"--run with another directory, or the copy in {FOLDER}/",
            )


def keep(config: ConfigDict, directory: pathlib.Path) -> None:
    """Copies the source files of parts that a config names into a run directory."""
    for name, path in own.files(configs.modules(config)).items():
        copy = directory / FOLDER / f"{name}.py"
        make_directory(copy.parent)
        write_whole(copy, path.read_bytes())
