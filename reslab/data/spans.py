"""Bytes of a document by spans of its characters."""

import codecs
import threading

import numpy as np


def character_starts(document: bytes) -> tuple[np.ndarray, bool]:
    """Finds the byte at which each character of a document begins.

    Characters are those of `document.decode("utf-8", errors="replace")`: bytes that are
    not UTF-8 are one U+FFFD for each run that Python replaces.

    Args:
      document: Any bytes.

    Returns:
      Their places and the size of the document, int64 of shape (characters + 1,); and
      whether all of it is UTF-8.

    >>> starts, is_utf8 = character_starts("aü世".encode())
    >>> starts.tolist(), is_utf8
    ([0, 1, 3, 6], True)
    """
    _found.spans = []
    document.decode("utf-8", errors="reslab.found")
    is_start = (np.frombuffer(document, np.uint8) & 0xC0) != 0x80
    is_start = np.append(is_start, True)
    for begin, end in _found.spans:
        is_start[begin] = True
        is_start[begin + 1 : end] = False
    return np.flatnonzero(is_start), not _found.spans


_found = threading.local()


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Replaces as `errors="replace"` does, and keeps the place."""
    assert isinstance(error, UnicodeDecodeError)
    _found.spans.append((error.start, error.end))
    return "\N{REPLACEMENT CHARACTER}", error.end


codecs.register_error("reslab.found", _replace)


def spread(ends: np.ndarray, size: int) -> np.ndarray:
    """Gives every byte of a document to one token.

    Args:
      ends: The byte after each token's text, of shape (tokens,).
      size: Bytes of the document.

    Returns:
      Bytes of each token, int64, which add up to `size` if there are tokens. A token
      has those since the greatest end before it. The last has all that remain. Tokens
      that end where one before them does share its bytes evenly.

    >>> spread(np.array([1, 4, 4, 4, 6]), 7).tolist()
    [1, 1, 1, 1, 3]
    """
    if not len(ends):
        return np.zeros(0, np.int64)
    ends = np.minimum(np.maximum.accumulate(ends), size)
    ends[-1] = size
    sizes = np.diff(ends, prepend=0)
    group = np.cumsum(sizes > 0)
    count, total = np.bincount(group), np.bincount(group, sizes).astype(np.int64)
    begins = np.cumsum(count) - count
    rank = np.arange(len(ends)) - begins[group]
    whole, parts = total[group], count[group]
    return (rank + 1) * whole // parts - rank * whole // parts
