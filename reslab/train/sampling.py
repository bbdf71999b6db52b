"""Samples of text, from a run or from a model in memory."""

import pathlib
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data.encoding import tokenizer_sha256
from reslab.train import generate, kept
from reslab.train.memory import check_generation
from reslab.train.restoring import restore

if TYPE_CHECKING:
    from reslab.data.encoding import Tokenizer

# Tokens of a sample, unless the model was trained on fewer.
LENGTH = 200


def sample_run(
    directory: str | pathlib.Path, config: ConfigDict, **options: Any
) -> list[str]:
    """Samples text from the newest parameters of a run.

    Args:
      directory: The run.
      config: Its config.
      **options: Those of `sample`.
    """
    tokenizer = registry.make("tokenizers", config.data.tokenizer)
    check_texts(tokenizer, options.get("prompt"), options.get("stop", ()))
    # Only the tokenizer is checked: no documents are read.
    record = {"tokenizer_sha256": tokenizer_sha256(tokenizer, config.data.tokenizer)}
    setup, variables = restore(directory, config, jax.devices()[:1], record)
    return sample(
        setup.model,
        variables,
        tokenizer,
        trained=config.data.length,
        name=str(directory),
        ends=kept.ends(pathlib.Path(directory)),
        **options,
    )


def sample(
    model: Any,
    variables: Mapping[str, Any],
    tokenizer: "Tokenizer",
    *,
    trained: int,
    name: str = "the model",
    prompt: str | None = None,
    length: int | None = None,
    samples: int = 1,
    stop: Sequence[str] = (),
    ends: Collection[int] = (),
    **sampling: Any,
) -> list[str]:
    """Samples text from a model.

    A sample ends where the model begins another document, or at one of `ends`. If one
    is longer than the sequences of training, a line on standard error says so.

    Args:
      model: The model.
      variables: Its parameters, and its state where it has one.
      tokenizer: Its tokenizer.
      trained: Tokens in a sequence of its training.
      name: What to call it in that line.
      prompt: Text to continue; a new document if None.
      length: Most tokens to add; None is `LENGTH`, within `trained`.
      samples: Number of samples.
      stop: Texts before which a sample ends.
      ends: Tokens at which it ends, such as those that a checkpoint names.
      **sampling: Options of `generate`: `temperature`, `top_k`, `top_p`, `seed`.

    Returns:
      Each sample after the prompt.

    Raises:
      ReslabError: If the prompt or a text of `stop` is empty, or the samples do not
        fit in memory.
    """
    ids = check_texts(tokenizer, prompt, stop)
    tokens = np.tile(np.asarray([[tokenizer.bos, *ids]]), (samples, 1))
    begun = tokens.shape[1]
    if length is None:
        length = min(LENGTH, trained - begun) if begun < trained else LENGTH
    check_generation(model, samples, begun + length)
    new = generate.generate(model, variables, tokens, length, **sampling)
    # The end of a document is the token that begins the next.
    stops = [tokenizer.bos, *ends]
    rows = [row[: np.argmax([*np.isin(row, stops), True])] for row in np.asarray(new)]
    longest = begun + max(map(len, rows))
    if longest > trained:
        print(
            f"{name} was trained on {trained} tokens at a time: a sample of "
            f"{longest} goes past what it knows",
            file=sys.stderr,
        )
    return [
        (prompt or "") + _ended(_continuation(tokenizer, ids, row), stop)
        for row in rows
    ]


def check_texts(
    tokenizer: "Tokenizer", prompt: str | None, stop: Sequence[str]
) -> list[int]:
    """Returns the tokens of a prompt.

    Raises:
      ReslabError: If the prompt has none, or a text of `stop` is empty.
    """
    ids = [] if prompt is None else list(tokenizer.encode(_bytes_of(prompt)))
    if prompt is not None and not ids:
        raise ReslabError(
            "prompt",
            expected="at least one token",
            got=repr(prompt),
            hint="leave it out to begin a new document",
        )
    if isinstance(stop, str) or not all(stop):
        got = repr(stop) if isinstance(stop, str) else "''"
        raise ReslabError("stop", expected="texts, none empty", got=got)
    return ids


def _continuation(tokenizer: "Tokenizer", prompt: list[int], row: np.ndarray) -> str:
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
        raise ReslabError("prompt", expected="text", got=repr(prompt)) from None
