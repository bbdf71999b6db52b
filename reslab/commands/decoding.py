"""`reslab bench generate`: speed and memory of mixers at long contexts, as CSV rows."""

import dataclasses
import datetime
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.models.lm import LanguageModel
from reslab.observe.environment import environment
from reslab.train.generate import continue_state

# Layers of the same width; the first is what the others are compared with.
MIXERS: dict[str, dict[str, str]] = {
    "attention": {"mixer": "attention(heads=4)"},
    "windowed_attention": {"mixer": "attention(heads=4,window=256)"},
    "latent_attention": {"mixer": "latent_attention(heads=4,rank=64)"},
    "gated_delta": {"mixer": "gated_delta(heads=4)"},
    "kda": {"mixer": "kda(heads=4)"},
    "mamba2": {"mixer": "mamba2(heads=8)"},
    "retention": {"mixer": "retention(heads=4)"},
    "recurrent_transformer": {
        "mixer": "attention(heads=4)",
        "block": "recurrent_transformer",
        "position": "alibi",
    },
}
CONTEXTS = (1024, 4096, 16384)
WIDTH, DEPTH, VOCABULARY = 256, 4, 256
# Tokens of a timed call, and calls; the first call is not counted.
TOKENS, CALLS = 32, 9


@dataclasses.dataclass
class Row:
    """Generation by one mixer at one context.

    Attributes:
      mixer: Name in `MIXERS`, or the spec.
      context: Tokens before the first that is timed.
      dtype: Of compute and of caches.
      state_bytes: Bytes of state per sequence, all layers together.
      tokens_per_second: Of one sequence, in the fastest call.
      slowdown: Time of a token over that at the least context.
      parameters: Of the model.
      device: What it ran on.
      load: Processes that wanted a core, the mean of the minute before.
      commit: Of the source.
      jax: Version.
      date: Of the run.
    """

    mixer: str
    context: int
    dtype: str
    state_bytes: int
    tokens_per_second: float
    slowdown: float
    parameters: int
    device: str
    load: float
    commit: str | None
    jax: str
    date: str


def bench_generate(
    mixers: Sequence[str],
    contexts: Sequence[int],
    dtype: str,
    tell: Callable[[str], None],
) -> list[Row]:
    """Times single sequences, all mixers and contexts in turn.

    No prompt is read: caches are filled with random numbers and their counts of tokens
    set to the context, which costs a token what a true prompt of that length would.

    Args:
      mixers: Names in `MIXERS`, or specs of mixers; all of `MIXERS` if empty.
      contexts: Tokens so far; `CONTEXTS` if empty.
      dtype: "bfloat16" or "float32".
      tell: Is given a line as each begins.

    Returns:
      The rows.

    Raises:
      ReslabError: On an unknown mixer or dtype, or a context below 1.
    """
    if dtype not in ("bfloat16", "float32"):
        raise ReslabError(
            "bench: dtype", expected="bfloat16 or float32", got=repr(dtype)
        )
    contexts = sorted(set(contexts or CONTEXTS))
    if contexts[0] < 1 or contexts[-1] > 2**24:
        wrong = contexts[0] if contexts[0] < 1 else contexts[-1]
        raise ReslabError("bench: context", expected="1 to 2**24", got=str(wrong))
    names = list(dict.fromkeys(mixers or MIXERS))
    models = {name: model_of(name, dtype) for name in names}
    for model in models.values():
        model.init_state(1, 1)
    about, load = environment(), round(os.getloadavg()[0], 2)
    runs = {}
    for context in contexts:
        tell(f"compiling generation after {context:,} tokens ...")
        for name in names:
            runs[context, name] = _Run(models[name], context)
    for call in range(1, CALLS + 1):
        tell(f"timing, {call} of {CALLS} ...")
        for run in runs.values():
            run.call()
    rows = []
    for (context, name), run in runs.items():
        rate = TOKENS / run.seconds
        row = Row(
            *(name, context, dtype, state_bytes(models[name], context)),
            tokens_per_second=round(rate, 1),
            slowdown=round(run.seconds / runs[contexts[0], name].seconds, 2),
            parameters=run.parameters,
            device=about["device_kind"],
            load=load,
            commit=about["commit"],
            jax=about["versions"]["jax"],
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )
        rows.append(row)
    return rows


def model_of(name: str, dtype: str) -> LanguageModel:
    """The language model of a name in `MIXERS`, or of a mixer's spec."""
    fields: dict[str, Any] = MIXERS.get(name) or {"mixer": name}
    return LanguageModel(
        vocabulary_size=VOCABULARY,
        features=WIDTH,
        depth=DEPTH,
        is_unrolled=True,
        dtype=jnp.dtype(dtype),
        **fields,
    )


def state_bytes(model: LanguageModel, context: int) -> int:
    """Bytes of the mixers' state of one sequence of `context` tokens."""
    state = jax.eval_shape(functools.partial(model.init_state, 1, context))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def started(model: LanguageModel, context: int, more: int) -> Any:
    """A state as after `context` tokens, with room for `more`: random numbers."""

    def fill(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.full_like(leaf, context)  # Numbers of tokens so far.
        return 0.1 * jax.random.normal(key, leaf.shape, leaf.dtype)

    @jax.jit
    def make() -> Any:
        leaves, form = jax.tree.flatten(model.init_state(1, context + more))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        return form.unflatten(map(fill, keys, leaves))

    return make()


class _Run:
    """A model that generates, call after call, from one state."""

    def __init__(self, model: LanguageModel, context: int) -> None:
        tokens = jnp.zeros((1, 2), jnp.int32)
        variables = jax.jit(model.init)(jax.random.key(0), tokens)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
        state = started(model, context, (CALLS + 1) * TOKENS)
        self._begun = jnp.zeros((1, VOCABULARY), jnp.float32), state
        self._lengths = jnp.full((1,), context, jnp.int32)
        self._times: list[float] = []

        # Donated, so that no call copies a cache.
        @functools.partial(jax.jit, donate_argnums=1)
        def run(variables: Any, begun: Any, lengths: jax.Array) -> Any:
            key = jax.random.key(0)
            return continue_state(model, variables, begun, lengths, TOKENS, key)[1]

        self._run = functools.partial(run, variables)
        self._advance()

    def _advance(self) -> None:
        self._begun = jax.block_until_ready(self._run(self._begun, self._lengths))
        self._lengths = self._lengths + TOKENS

    def call(self) -> None:
        """Generates `TOKENS` more."""
        begin = time.perf_counter()
        self._advance()
        self._times.append(time.perf_counter() - begin)

    @property
    def seconds(self) -> float:
        """Time of the fastest call: others' work on the machine only adds to it."""
        return min(self._times)
