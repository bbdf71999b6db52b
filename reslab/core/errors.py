"""The one error that a person sees: what was expected, what came, what to try."""

import difflib
import re
from collections.abc import Iterable

# Characters that move the cursor or disguise a line: control and escape characters,
# line and paragraph separators, changes of direction, lone surrogates.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# Maximum lengths in a message: of a user's value, and of a whole part of the message.
LONGEST_VALUE = 200
_LONGEST_PART = 1000


def printable(text: str) -> str:
    r"""Escapes what would not be shown as itself; tabs and ends of lines stay.

    >>> print(printable("a\x1b[31mb"))
    a\x1b[31mb
    """
    return _CONTROL.sub(lambda c: c[0].encode("unicode_escape").decode(), text)


def escaped(text: str) -> str:
    r"""Escapes what would not be shown as itself, tabs and ends of lines included.

    >>> print(escaped("a\nb"))
    a\nb
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def one_line(text: str, longest: int = _LONGEST_PART) -> str:
    r"""Makes a text one printable line of bounded length.

    >>> print(one_line("a\nb" + "c" * 9, longest=9))
    a\nb...cc
    """
    text = text[: 4 * longest]  # Escaping the whole value could take long.
    text = escaped(text)
    text = re.sub(rf"\S{{{LONGEST_VALUE + 1},}}", lambda word: _cut(word[0]), text)
    return _cut(text, longest)


def _cut(text: str, longest: int = LONGEST_VALUE) -> str:
    """The beginning and the end: of a path, both matter."""
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - 3 - end]}...{text[len(text) - end :]}"


class ReslabError(ValueError):
    """A request that cannot be carried out, told in one line.

    The command line prints the message without a traceback and exits with
    status 2; library code sees an ordinary `ValueError`. The message is one printable
    line, whatever a name or a value in it holds, and long values are cut.

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
        parts = (("expected", expected), ("got", got), ("try:", hint))
        details = [
            f"{label} {one_line(text, LONGEST_VALUE if text is got else _LONGEST_PART)}"
            for label, text in parts
            if text
        ]
        what = one_line(what)
        super().__init__(f"{what}: {'; '.join(details)}" if details else what)

    def _render_traceback_(self) -> list[str]:
        """Shows the message alone in a notebook, which calls this by name."""
        return [f"{type(self).__name__}: {self}"]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the known name that was probably meant, and all that are known.

    >>> nearest("hypr", ["hyper", "plain"])
    "'hyper' (known: hyper, plain)"
    >>> nearest("plain", ["flain", "plain_text"])
    "'plain_text' (known: flain, plain_text)"
    >>> nearest("abc", ["hyper", "plain"])
    'one of hyper, plain'
    """
    known = sorted(known)
    longer = [one for one in known if name and one.startswith(f"{name}_")]
    close = longer or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    listing = ", ".join(known)
    return f"{close[0]!r} (known: {listing})" if close else f"one of {listing}"


def missing_extra(package: str, extra: str) -> ReslabError:
    """Builds the error for an optional package that is not installed."""
    return ReslabError(
        f"the package {package!r} is not installed",
        hint=f"pip install 'reslab[{extra}]'",
    )
