"""Exit codes of the command line and of a sweep's processes."""

from reslab.core import extension
from reslab.core.errors import ReslabError
from reslab.runtime.storage import StorageFailed, is_transient

BAD_INPUT = 2  # A mistake in the request: one line, nothing written.
FAILED = 1  # Part of a request failed, or the watchdog ended a stalled process.
STOPPED = 42  # Stopped on request, with the state saved.
INTERNAL = 70  # An error of reslab, the machine or its storage; a retry may succeed.
DIVERGED = 75  # The loss or the gradient is no longer finite.
INTERRUPTED = 130


def explain(error: BaseException) -> tuple[int, str] | None:
    """Returns the exit code and one line for an error that needs no traceback.

    Args:
      error: The exception that ended a command.

    Returns:
      The code and the line; None for an error of reslab itself.
    """
    if isinstance(error, ReslabError):
        return BAD_INPUT, str(error)
    if is_out_of_memory(error):
        line = ReslabError(
            "out of memory",
            got=str(error).partition("\n")[0] or None,
            hint="a smaller data.batch, eval.batch or model, train.accumulate, or "
            "model.remat='full'",
        )
        return INTERNAL, str(line)
    if isinstance(error, StorageFailed):
        return INTERNAL, str(error)
    if (told := extension.explain(error)) is not None:
        return BAD_INPUT, str(told)
    if isinstance(error, OSError) and error.errno is not None:
        what = f"{error.filename or 'storage'}"
        line = ReslabError(what, got=error.strerror or str(error))
        return INTERNAL if is_transient(error) else BAD_INPUT, str(line)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the host or a device ran out of memory."""
    # By name: JAX defines the error, and takes long to import.
    is_xla = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (
        is_xla and "RESOURCE_EXHAUSTED" in str(error)
    )
