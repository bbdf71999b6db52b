"""`python -m reslab`: the command line."""

import pathlib
import sys

if not sys.flags.safe_path:
    # Python puts the working directory first on its path, where files may have the
    # names of optional packages. It moves to the end if it holds reslab itself, else it
    # is removed.
    first = sys.path.pop(0)
    if pathlib.Path(first).resolve() == pathlib.Path(__file__).resolve().parents[1]:
        sys.path.append(first)

from reslab.cli import program

sys.exit(program())
