"""Files of paths: what was searched, then a line for each sample."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from reslab.core.errors import ReslabError
from reslab.runtime.files import write_whole
from reslab.train.paths.tree import counts


def read(file: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads the options of a search, and the samples found so far.

    Raises:
      ReslabError: If the file is not one of a search.
    """
    try:
        about, *done = map(json.loads, file.read_text().splitlines())
        depth, keys = about["depth"], {"examples", "path", "score", "base"}
        is_whole = isinstance(depth, int) and all(
            keys <= one.keys()
            and all(isinstance(n, int) and 0 <= n < depth for n in one["path"])
            for one in done
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        is_whole, about, done = False, {}, []
    if not is_whole:
        raise ReslabError(
            f"{file}", expected="a file that `reslab search paths` has written"
        )
    return about, done


def write(
    file: pathlib.Path, about: dict[str, Any], done: list[dict[str, Any]]
) -> None:
    """Writes the file in one move."""
    write_whole(file, "".join(f"{json.dumps(line)}\n" for line in (about, *done)))


def labels(done: list[dict[str, Any]], depth: int) -> Iterator[tuple[int, list[int]]]:
    """Yields every example and how often its path applies each layer."""
    for one in done:
        for example in one["examples"]:
            yield example, counts(tuple(one["path"]), depth)
