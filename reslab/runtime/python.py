"""Other processes of this very installation."""

import json
import pathlib
import sys

import reslab

_ROOT = pathlib.Path(reslab.__file__).resolve().parent.parent
# Otherwise Python searches its working directory first. `import reslab` imports typing.
_BEGIN = """
import importlib, json, sys, typing
root, path, module = json.loads(sys.argv.pop(1))
sys.path[:] = [root]
import reslab
sys.path[:] = path
sys.exit(importlib.import_module(module).main(*sys.argv[1:]))
"""


def command(module: str, *arguments: str) -> list[str]:
    """The command of a process that imports what this one does, wherever it starts.

    Args:
      module: A module of reslab; its `main` is called, and gives the exit code.
      *arguments: What `main` is given.
    """
    begin = json.dumps([str(_ROOT), sys.path, module])
    return [sys.executable, "-P", "-c", _BEGIN, begin, *arguments]
