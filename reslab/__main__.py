"""`python -m reslab`: the command line."""

import sys

from reslab.cli import main

sys.exit(main())
