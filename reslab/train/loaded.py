"""A model with its parameters and its tokenizer, in Python."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with its parameters; `model, params, tokenizer = loaded` takes it apart.

    Attributes:
      model: The Linen module: `model.apply(loaded.variables, tokens)` are logits.
      params: Its parameters.
      tokenizer: Its tokenizer (see `reslab.data.encoding.Tokenizer`).
      model_state: What it keeps beside its parameters, such as biases of routers;
        empty for most models, which `{"params": params}` is enough for.
      ends: Tokens at which a sample ends, by the files of its checkpoint.
    """

    model: Any
    params: Any
    tokenizer: Any
    model_state: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ends: frozenset[int] = frozenset()

    @property
    def variables(self) -> dict[str, Any]:
        """Returns all collections of the model."""
        return {"params": self.params, **self.model_state}

    def __iter__(self) -> Iterator[Any]:
        """Yields model, parameters and tokenizer."""
        return iter((self.model, self.params, self.tokenizer))
