"""The one error that a person sees: what was expected, what came, what to try."""

import difflib
from collections.abc import Iterable


class ReslabError(ValueError):
    """A request that cannot be carried out, told in one line.

    The command line prints the message without a traceback and exits with
    status 2; library code sees an ordinary `ValueError`.

    Args:
      what: What is wrong, and where.
      expected: What would have been right.
      got: What came instead.
      hint: What to try.

    >>> print(ReslabError("model.depth", expected="int", got="'four'", hint="write 4"))
    model.depth: expected int; got 'four'; try: write 4
    """

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
    ):
        details = [
            f"{label} {text}"
            for label, text in (("expected", expected), ("got", got), ("try:", hint))
            if text
        ]
        super().__init__(f"{what}: {'; '.join(details)}" if details else what)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the known name that was probably meant, and all that are known.

    >>> nearest("hypr", ["hyper", "plain"])
    "'hyper' (known: hyper, plain)"
    >>> nearest("abc", ["hyper", "plain"])
    'one of hyper, plain'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    listing = ", ".join(known)
    return f"{close[0]!r} (known: {listing})" if close else f"one of {listing}"


def missing_extra(package: str, extra: str) -> ReslabError:
    """Builds the error for an optional package that is not installed."""
    return ReslabError(
        f"the package {package!r} is not installed",
        hint=f"pip install 'reslab[{extra}]'",
    )
