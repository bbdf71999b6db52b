"""`python -m reslab`: the command line."""

import sys

if not sys.flags.safe_path:
    # Python puts the working directory first: its random.py would be everyone's.
    sys.path.append(sys.path.pop(0))

from reslab.cli import program

sys.exit(program())
