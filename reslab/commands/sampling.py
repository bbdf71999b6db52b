"""Samples of a run's model."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reslab.commands.runs import restore
from reslab.core.errors import ReslabError

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict

    from reslab.data.encoding import Tokenizer

# Tokens of a sample, unless the model was trained on fewer.
LENGTH = 200


def sample(
    directory: Any,
    config: "ConfigDict",
    *,
    length: int | None,
    prompt: str | None = None,
    stop: Sequence[str] = (),
    **sampling: Any,
) -> list[str]:
    """Samples text from the newest parameters of a run.

    A sample ends where the model begins another document. If one is longer than the
    sequences of training, a line on standard error says so.

    Args:
      directory: The run.
      config: Its config.
      length: Most tokens to add; None is `LENGTH`, within the length of the run's
        sequences.
      prompt: Text to continue; a new document if None.
      stop: Texts before which a sample ends.
      **sampling: `samples` and the arguments of `generate`.

    Returns:
      Each sample after the prompt.

    Raises:
      ReslabError: If the prompt or a text of `stop` is empty, or the samples do not
        fit in memory.
    """
    import jax
    import numpy as np

    from reslab.core import registry
    from reslab.data.encoding import tokenizer_sha256
    from reslab.train.generate import generate
    from reslab.train.memory import check_generation

    tokenizer = registry.make("tokenizers", config.data.tokenizer)
    ids = [] if prompt is None else list(tokenizer.encode(_bytes_of(prompt)))
    if prompt is not None and not ids:
        raise ReslabError(
            "--prompt",
            expected="at least one token",
            got=repr(prompt),
            hint="leave it out to begin a new document",
        )
    if not all(stop):
        raise ReslabError("--stop", expected="text", got="''")
    samples = sampling.pop("samples", 1)
    # Only the tokenizer is checked: no documents are read.
    record = {"tokenizer_sha256": tokenizer_sha256(tokenizer, config.data.tokenizer)}
    setup, variables = restore(directory, config, jax.devices()[:1], record)
    tokens = np.tile(np.asarray([[tokenizer.bos, *ids]]), (samples, 1))
    begun, trained = tokens.shape[1], config.data.length
    if length is None:
        length = min(LENGTH, trained - begun) if begun < trained else LENGTH
    check_generation(setup, samples, begun + length)
    new = np.asarray(generate(setup.model, variables, tokens, length, **sampling))
    # The end of a document is the token that begins the next.
    rows = [row[: [*row, tokenizer.bos].index(tokenizer.bos)] for row in new]
    longest = begun + max(map(len, rows))
    if longest > trained:
        print(
            f"{directory} was trained on {trained} tokens at a time: a sample of "
            f"{longest} goes past what it knows",
            file=sys.stderr,
        )
    return [
        (prompt or "") + _ended(_continuation(tokenizer, ids, row), stop)
        for row in rows
    ]


def _continuation(tokenizer: "Tokenizer", prompt: list[int], row: "np.ndarray") -> str:
    """The text of new tokens after a prompt."""
    # Some decoders drop a space that begins a text.
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *row])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(row)


def _ended(text: str, stop: Sequence[str]) -> str:
    """The text before the first of some others."""
    return text[: min((text.find(end) for end in stop if end in text), default=None)]


def _bytes_of(prompt: str) -> bytes:
    """The bytes that were typed, also where they are no text of the locale."""
    try:
        return prompt.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ReslabError("--prompt", expected="text", got=repr(prompt)) from None
