"""Continuous batching over depth: slots at different loops share one application."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.models.lm import LanguageModel
from reslab.train.generate import prefill, sample_token


class Slots(NamedTuple):
    """Samples in progress; a row for each slot.

    Attributes:
      sample: Number of the sample; past the last where the slot is empty.
      index: Number of tokens that were added to it.
      number: Number of the next pass over its newest token.
      position: Position of that token.
      stream: The stream before the pass.
      state: The states of all passes.
      tokens: The new tokens of all samples (samples, length).
      waiting: Number of the first sample that has no slot yet.
      applications: Number of times that the layers were applied, prompts left out.
    """

    sample: jax.Array
    index: jax.Array
    number: jax.Array
    position: jax.Array
    stream: Any
    state: Any
    tokens: jax.Array
    waiting: jax.Array
    applications: jax.Array


def continue_in_slots(
    model: LanguageModel,
    variables: Any,
    prompt: jax.Array,
    length: int,
    key: jax.Array,
    is_prompt: jax.Array,
    slots: int,
    threshold: float = 0.0,
    **sampling: Any,
) -> tuple[jax.Array, jax.Array]:
    """Continues prompts in few slots, each filled again once its sample is finished.

    Every application of the layers takes one pass of every slot, each at a pass of its
    own: those of tokens that end early begin their next token while others go on. A
    sample has its own random key and no slot sees another, so that it gets what it gets
    alone. The host is not asked.

    Reference: Bae et al., 2024, https://arxiv.org/abs/2410.20672, Section 2.4
    (continuous depth-wise batching).

    Args:
      model: A model whose stack has `slot_pass`.
      variables: Its parameters.
      prompt: Token ids (samples, prompt length).
      length: Number of tokens to add.
      key: Random key.
      is_prompt: Which tokens are in the prompt, like `prompt`.
      slots: Number of slots.
      threshold: A token ends when a pass changes its stream by less than this, by the
        stream's own size; later tokens find the keys and values of that pass at any
        depth. 0 takes all passes.
      **sampling: Options of `sample_token`.

    Returns:
      The new tokens (samples, length), and the number of applications.
    """
    samples = prompt.shape[0]
    run = _Run(
        *(model, variables, prompt, is_prompt, length, key, threshold, sampling),
        functions=model.make_stack(parent=None).slot_pass(variables),
    )
    last = jax.lax.while_loop(
        lambda slots: (slots.waiting < samples) | jnp.any(slots.sample < samples),
        *(run.advanced, run.empty(slots)),
    )
    return last.tokens, last.applications


@dataclasses.dataclass(frozen=True)
class _Run:
    """The steps of slots; fields are the arguments of `continue_in_slots`."""

    model: LanguageModel
    variables: Any
    prompt: jax.Array
    is_prompt: jax.Array
    length: int
    key: jax.Array
    threshold: float
    sampling: Any
    functions: Any

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.prompt.shape[0]

    @property
    def room(self) -> int:
        """Tokens that a state has room for."""
        return self.prompt.shape[1] + self.length

    def empty(self, slots: int) -> Slots:
        """Slots without a sample."""
        none = jnp.zeros((slots,), jnp.int32)
        stream = jax.eval_shape(self.begun, jnp.int32(0), jnp.int32(0))
        state = jax.eval_shape(lambda: self.model.init_state(1, self.room))
        stream, state = jax.tree.map(
            lambda a: jnp.zeros((slots, *a.shape), a.dtype), (stream, state)
        )
        return Slots(
            sample=none + self.samples,
            index=none,
            number=none,
            position=none,
            stream=stream,
            state=state,
            tokens=jnp.zeros((self.samples, self.length), jnp.int32),
            waiting=jnp.int32(0),
            applications=jnp.int32(0),
        )

    def begun(self, token: jax.Array, position: jax.Array) -> Any:
        """The stream of one token before its first pass."""
        at = {"tokens": token[None, None], "positions": position[None, None]}
        start, _, _ = self.functions
        return start(self.model.apply(self.variables, **at, method="embed"))

    def drawn(self, logits: jax.Array, sample: jax.Array, index: Any) -> jax.Array:
        """The token that follows; its key is of the sample and the place alone."""
        own = jax.random.fold_in(jax.random.fold_in(self.key, sample), index)
        return sample_token(logits, own, **self.sampling)[0].astype(jnp.int32)

    def advanced(self, slots: Slots) -> Slots:
        """Fills an empty slot; applies the layers once none can be filled."""

        def can_fill(slots):
            is_empty = jnp.any(slots.sample >= self.samples)
            return is_empty & (slots.waiting < self.samples)

        slots = jax.lax.cond(can_fill(slots), self.filled, lambda s: s, slots)
        return jax.lax.cond(can_fill(slots), lambda s: s, self.applied, slots)

    def filled(self, slots: Slots) -> Slots:
        """Puts the first sample that waits into the first empty slot."""
        slot, sample = jnp.argmax(slots.sample >= self.samples), slots.waiting
        tokens, real = (a[sample][None] for a in (self.prompt, self.is_prompt))
        logits, state = prefill(self.model, self.variables, tokens, self.room, real)
        token, count = self.drawn(logits, sample, 0), jnp.sum(real, dtype=jnp.int32)
        new = {
            "sample": sample if self.length > 1 else jnp.int32(self.samples),
            "index": jnp.int32(1),
            "number": jnp.int32(0),
            "position": count,
            "stream": self.begun(token, count),
            "state": state,
        }
        put = jax.tree.map(
            lambda all_, one: all_.at[slot].set(one),
            {name: getattr(slots, name) for name in new},
            new,
        )
        return slots._replace(
            **put,
            tokens=slots.tokens.at[sample, 0].set(token),
            waiting=slots.waiting + 1,
        )

    def applied(self, slots: Slots) -> Slots:
        """Applies the layers to every slot at its own pass."""
        _, advance, _ = self.functions
        rest = slots.number, slots.state, slots.position
        after, state, is_last = jax.vmap(lambda *a: advance(*a, self.threshold))(
            slots.stream, *rest
        )
        is_last &= slots.sample < self.samples
        # The head is as wide as the vocabulary: only where a token has ended.
        token, following = jax.lax.cond(
            jnp.any(is_last),
            jax.vmap(self._next),
            lambda sample, index, position, after: (jnp.zeros_like(sample), after),
            *(slots.sample, slots.index, slots.position, after),
        )
        row = jnp.where(is_last, slots.sample, self.samples)
        one_more = is_last.astype(jnp.int32)
        index = slots.index + one_more
        is_done = is_last & (index >= self.length)

        def chosen(new, old):
            return jnp.where(is_last.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        return slots._replace(
            sample=jnp.where(is_done, self.samples, slots.sample),
            index=index,
            number=jnp.where(is_last, 0, slots.number + 1),
            position=slots.position + one_more,
            stream=jax.tree.map(chosen, following, after),
            state=state,
            tokens=slots.tokens.at[row, slots.index].set(token, mode="drop"),
            applications=slots.applications + 1,
        )

    def _next(self, sample, index, position, after):
        """The next token of one slot whose last pass is done, and its stream."""
        _, _, finish = self.functions
        logits: Any = self.model.apply(self.variables, finish(after), method="read_out")
        token = self.drawn(logits[:, 0], sample, index)
        return token, self.begun(token, position + 1)


def check_slots(model: LanguageModel, slots: int, samples: int, exit: str) -> None:
    """Refuses a model whose layers slots cannot share.

    Args:
      model: The model.
      slots: Number of slots.
      samples: Number of samples.
      exit: What ends the passes of a token.

    Raises:
      ReslabError: If it is one, there are fewer samples than slots, or passes end by
        anything but the stream.
    """
    if not 1 <= slots <= samples:
        raise ReslabError(
            "slots", expected=f"1 to {samples}, the samples", got=str(slots)
        )
    if exit not in ("none", "latent"):
        raise ReslabError(
            "exit with slots", expected="'none' or 'latent'", got=repr(exit)
        )
    if not hasattr(model.make_stack(parent=None), "slot_pass"):
        raise ReslabError(
            "slots",
            expected="a stack with one loop over all its layers",
            got=str(model.stack),
            hint="stack recursive, or slots=0",
        )
    if not model.passes_padding:
        raise ReslabError(
            f"mixer {model.mixer!r} would take padding into its state",
            expected="mixers that can pass tokens by",
            hint="passes_padding, in docs/PROTOCOLS.md",
        )
