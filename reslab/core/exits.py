"""Exit codes of the command line and of a sweep's processes."""

BAD_INPUT = 2  # A mistake in the request: one line, nothing written.
FAILED = 1  # Part of a request failed; or the watchdog ended a stalled process.
STOPPED = 42  # Stopped on request, with the state saved.
INTERNAL = 70  # An error of reslab, the machine or its storage; worth another try.
DIVERGED = 75  # The loss or the gradient is no longer finite.
INTERRUPTED = 130
