"""Samples of a run's model."""

from typing import TYPE_CHECKING, Any

from reslab.commands.runs import restore
from reslab.core.errors import ReslabError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def sample(
    directory: Any,
    config: "ConfigDict",
    *,
    length: int | None,
    prompt: str | None = None,
    **sampling: Any,
) -> list[str]:
    """Samples text from the newest parameters of a run.

    Args:
      directory: The run.
      config: Its config.
      length: Tokens to add; at most 200, and what the model has positions for, if None.
      prompt: Text to continue; a new document if None.
      **sampling: `samples` and the arguments of `generate`.

    Returns:
      Each sample after the prompt.

    Raises:
      ReslabError: If the prompt is empty, or the samples do not fit in memory.
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
    samples = sampling.pop("samples", 1)
    # Only the tokenizer is checked: no documents are read.
    record = {"tokenizer_sha256": tokenizer_sha256(tokenizer, config.data.tokenizer)}
    setup, variables = restore(directory, config, jax.devices()[:1], record)
    model = setup.model
    tokens = np.tile(np.asarray([[tokenizer.bos, *ids]]), (samples, 1))
    if length is None:
        limit = model.position_limit
        length = 200 if limit is None else max(1, min(200, limit - tokens.shape[1]))
    check_generation(setup, samples, tokens.shape[1] + length)
    new = np.asarray(generate(model, variables, tokens, length, **sampling))
    return [(prompt or "") + tokenizer.decode(row) for row in new]


def _bytes_of(prompt: str) -> bytes:
    """The bytes that were typed, also where they are no text of the locale."""
    try:
        return prompt.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ReslabError("--prompt", expected="text", got=repr(prompt)) from None
