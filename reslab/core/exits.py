"""Exit codes of the command line and of a sweep's processes."""

BAD_INPUT = 2  # A mistake in the request: one line, nothing written.
STOPPED = 42  # Stopped on request, with the state saved.
DIVERGED = 75  # The loss or the gradient is no longer finite.
INTERRUPTED = 130
