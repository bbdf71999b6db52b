"""`python -m reslab`: the command line."""

import pathlib
import sys

if not sys.flags.safe_path:
    # Python puts the working directory first, where somebody else's files may lie under
    # the names of optional packages. It stays, last, where it holds reslab itself.
    first = sys.path.pop(0)
    if pathlib.Path(first).resolve() == pathlib.Path(__file__).resolve().parents[1]:
        sys.path.append(first)

from reslab.cli import program

sys.exit(program())
