"""Randomness while training: one stream of random numbers, off unless it is given.

A part that draws random numbers does so exactly where its caller gave a key of this
name; without one the model is evaluated. Loops over layers split the key, so every
layer draws its own numbers, the same whether the loop is rolled, unrolled,
rematerialized or spread over devices.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import flax.linen as nn
import jax

from reslab.core.errors import ReslabError

# The usual Flax name of the stream.
DROPOUT = "dropout"


_forbidden: contextvars.ContextVar[str] = contextvars.ContextVar(
    "forbidden", default=""
)


def training_keys(key: jax.Array | None) -> dict[str, jax.Array]:
    """The keys to apply a model with, from one key or from none.

    >>> training_keys(None)
    {}
    """
    return {} if key is None else {DROPOUT: key}


def training_key(module: nn.Module) -> jax.Array | None:
    """A new key for a module that draws random numbers; None if it should not.

    Raises:
      ReslabError: If it should, but where it is they cannot be drawn again.
    """
    if _forbidden.get():
        raise ReslabError(
            f"{type(module).__name__} draws random numbers",
            expected="none within " + _forbidden.get(),
            hint="another block or optimizer",
        )
    return module.make_rng(DROPOUT) if module.has_rng(DROPOUT) else None


@contextlib.contextmanager
def without_randomness(where: str) -> Iterator[None]:
    """Refuses to draw random numbers inside.

    For loops that hand on no keys: what draws would else be evaluated, unnoticed.

    Args:
      where: What the loop is, for the error; "" refuses nothing.
    """
    token = _forbidden.set(where)
    try:
        yield
    finally:
        _forbidden.reset(token)
