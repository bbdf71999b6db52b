"""Fixed windows over a token stream: packing without padding."""

import operator

import numpy as np

from reslab.core.errors import ReslabError
from reslab.data.corpus import TokenStream

Window = dict[str, np.ndarray]


class WindowSource:
    """Random access to the windows of a stream, each `length` tokens.

        window i = tokens[i * length : (i + 1) * length + 1]

    Inputs are all but its last token, targets all but its first. Each token is
    once an input and once a target; a remainder shorter than a window is left
    out. Documents that share a window are told apart by their segment.

    The BOS of the next document is also the end of a document. As a target it is
    counted if `predicts_end`, and hidden otherwise.

    Args:
      stream: The documents.
      length: Tokens per window.
      predicts_end: Whether the end of a document is a target that counts.

    Raises:
      ReslabError: If the stream is shorter than one window.

    >>> stream = TokenStream(np.array([0, 5, 6, 0, 7], np.uint16), np.array([0, 3]))
    >>> window = WindowSource(stream, 4)[0]
    >>> window["segment_ids"].tolist(), window["positions"].tolist()
    ([1, 1, 1, 2], [0, 1, 2, 0])
    >>> window["loss_mask"].tolist()
    [True, True, False, True]
    """

    def __init__(self, stream: TokenStream, length: int, *, predicts_end: bool = False):
        if length < 1:
            raise ReslabError("sequence length", expected="at least 1", got=str(length))
        if len(stream.tokens) <= length:
            raise ReslabError(
                "sequence length",
                expected=f"at most {len(stream.tokens) - 1}, the tokens of the corpus",
                got=str(length),
                hint="a shorter sequence or more text",
            )
        self.stream = stream
        self.length = length
        self.predicts_end = predicts_end

    def __len__(self) -> int:
        return (len(self.stream.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> Window:
        """Gives one window.

        Args:
          index: From 0 to `len(self) - 1`.

        Returns:
          Arrays of shape (length,): int32 `tokens`, `targets`, `segment_ids`
          (from 1) and `positions` (from 0 in each document and window); bool
          `loss_mask`, False where the target is a BOS that is not predicted; and int32
          `sizes`, the bytes that each target stands for, 0 if the stream counts none.
        """
        length, starts = self.length, self.stream.starts
        begin = operator.index(index) * length
        end = begin + length
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        tokens = self.stream.tokens[begin : end + 1].astype(np.int32)
        positions = np.arange(length, dtype=np.int32)
        segment_ids = np.ones(length, np.int32)
        loss_mask = np.ones(length, np.bool_)
        # Documents that begin after the first input, up to the last target.
        first = starts.searchsorted(begin, "right")
        last = starts.searchsorted(end, "right")
        if first < last:
            boundaries = starts[first:last] - begin
            loss_mask[boundaries - 1] = self.predicts_end
            inside = boundaries[boundaries < length]
            is_start = np.zeros(length, np.int32)
            is_start[inside] = 1
            document = np.cumsum(is_start, dtype=np.int32)
            positions -= np.append(0, inside).astype(np.int32)[document]
            segment_ids += document
        sizes = np.zeros(length, np.int32)
        if self.stream.sizes is not None:
            sizes[:] = self.stream.sizes[begin + 1 : end + 1]
        return {
            "tokens": tokens[:-1],
            "targets": tokens[1:],
            "segment_ids": segment_ids,
            "positions": positions,
            "loss_mask": loss_mask,
            "sizes": sizes,
        }
