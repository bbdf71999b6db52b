"""Exit codes and messages for the ends of training."""

import sys
import traceback

from reslab.parallel.hosts import leave_alone
from reslab.runtime.exits import (
    BAD_INPUT,
    DIVERGED,
    INTERNAL,
    INTERRUPTED,
    STOPPED,
    explain,
)
from reslab.train.loop import Diverged, Stopped


def end(error: BaseException, prefix: str = "") -> int:
    """Tells what ended training, and gives the process's exit code.

    One process of several that fails alone ends here, at once.

    Args:
      error: What `train` raised.
      prefix: What the line begins with.

    Returns:
      0 never; 2 for a mistake, 42 for a run that is saved, 70 for an error of reslab,
      the machine or its storage, 75 for a run that diverged, 130 for an interrupt.
    """
    code = INTERNAL
    if isinstance(error, Stopped):
        print(f"{error}; the same command continues from here", file=sys.stderr)
        return STOPPED  # All processes stop at the same step.
    if isinstance(error, Diverged):
        print(f"{prefix}{error}", file=sys.stderr)
        return DIVERGED  # All see the same loss.
    # Raised by --debug-nans, for its traceback.
    if isinstance(error, FloatingPointError):
        traceback.print_exception(error)
        code = DIVERGED
    elif isinstance(error, KeyboardInterrupt):
        code = INTERRUPTED
        print(f"{prefix}interrupted", file=sys.stderr)
    elif isinstance(error, SystemExit):  # Raised by a part.
        code = BAD_INPUT
        print(f"{prefix}a part of the run raised {error!r}", file=sys.stderr)
    elif (explained := explain(error)) is not None:
        code, line = explained
        if sys.flags.dev_mode:
            traceback.print_exception(error)
        print(f"{prefix}{line}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    leave_alone(code)
    return code
