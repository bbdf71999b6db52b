"""Sampling text: one prefill, then one token at a time from the mixers' state."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import check_updated
from reslab.models.lm import LanguageModel

# At higher temperatures float32 logits are equally likely as well, and the inverse
# underflows.
FLATTEST = 1e30


def sample_token(
    logits: jax.Array,
    key: jax.Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> jax.Array:
    """Draws a token from each row of logits.

        p = softmax(logits / temperature), restricted to the top_k most likely
        tokens and to the smallest set of them that has probability top_p

    Reference: Holtzman et al., 2019, https://arxiv.org/abs/1904.09751, Section 3.1
    (top-p); Fan et al., 2018, https://arxiv.org/abs/1805.04833, Section 5.4 (top-k).

    Args:
      logits: (batch, vocabulary).
      key: Random key.
      temperature: 0 takes the most likely token, as does one so small that logits
        divided by it overflow; infinity takes every token that the model does not
        rule out equally often.
      top_k: Number of tokens kept; 0 keeps all.
      top_p: Probability kept, in (0, 1].

    Returns:
      Token ids (batch,).
    """
    likeliest = jnp.argmax(logits, axis=-1)
    if temperature == 0:
        return likeliest
    temperature = min(temperature, FLATTEST)
    # Tokens that the model excludes have minus infinity.
    size = jnp.max(jnp.where(jnp.isfinite(logits), jnp.abs(logits), 0), axis=-1)
    is_drawn = jnp.isfinite(size / temperature)
    logits = logits / temperature
    vocabulary = logits.shape[-1]
    if 0 < top_k < vocabulary:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1:
        descending = jnp.sort(logits, axis=-1)[:, ::-1]
        probability = jax.nn.softmax(descending, axis=-1)
        # A token is kept if those before it have not reached top_p. The first one
        # always is, even if top_p underflows in float32.
        is_kept = jnp.cumsum(probability, axis=-1) - probability < top_p
        is_kept = is_kept.at[:, 0].set(True)
        least = jnp.min(jnp.where(is_kept, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jnp.where(is_drawn, jax.random.categorical(key, logits), likeliest)


def generate(
    model: LanguageModel,
    variables: Any,
    prompt: jax.typing.ArrayLike | Sequence[Sequence[int]],
    length: int,
    *,
    is_prompt: jax.typing.ArrayLike | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    exit: str = "none",
    threshold: float = 0.0,
    slots: int = 0,
) -> jax.Array:
    """Continues prompts, of one length or of several.

    Greedily, each is continued as it would be alone.

    Args:
      model: The model.
      variables: Its parameters, and its state where it has one.
      prompt: Token ids (batch, prompt length), BOS included; or sequences of token ids
        of different lengths.
      length: Number of tokens to add.
      is_prompt: Which tokens are in the prompt, booleans like `prompt`; the others are
        padding, to the left or to the right. None is all.
      seed: Chooses the sample.
      temperature: 0 takes the most likely token each time.
      top_k: Number of most likely tokens kept; 0 keeps all.
      top_p: Probability kept, in (0, 1].
      exit: What ends the passes of a looped stack early: "halting" in `stacks/act` and
        `stacks/ponder`, otherwise as in `stacks/huginn`.
      threshold: The change below which it does.
      slots: Number of prompts that are continued at a time, in slots at different
        passes of stack `recursive` that are filled again (see `train/slots`), where
        `exit` may be "latent"; 0 continues all at once. Samples are drawn by another
        key for each prompt.

    Returns:
      The new tokens (batch, length).

    Raises:
      ReslabError: If a prompt has no tokens, an option is out of range, or running
        statistics of the model were never updated.
    """
    check_updated(variables)
    prompt, is_prompt = _padded(prompt, is_prompt)
    if is_prompt is not None and not model.passes_padding:
        raise ReslabError(
            f"mixer {model.mixer!r} would take padding into its state",
            expected="prompts of one length",
            hint="passes_padding, in docs/PROTOCOLS.md",
        )
    for name, value, is_right, expected in (
        ("length", length, length >= 1, "at least 1"),
        ("temperature", temperature, temperature >= 0, "at least 0"),
        ("top_k", top_k, top_k >= 0, "at least 0"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
    ):
        if not is_right:
            raise ReslabError(name, expected=expected, got=str(value))
    if exit != "none" and not slots:
        model = _with_exit(model, exit, threshold)
    limit = model.position_limit
    if limit is not None and prompt.shape[1] + length > limit:
        raise ReslabError(
            "length",
            expected=f"at most {limit - prompt.shape[1]} after a prompt of "
            f"{prompt.shape[1]}: the model knows {limit} positions",
            got=str(length),
        )
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if slots:
        from reslab.train.slots import check_slots, continue_in_slots

        check_slots(model, slots, len(prompt), exit)
        real = np.ones(prompt.shape, bool) if is_prompt is None else is_prompt
        sampling |= {"slots": slots, "threshold": threshold if exit != "none" else 0.0}
        slotted = functools.partial(continue_in_slots, **sampling)
        return jax.jit(slotted, static_argnums=(0, 3))(
            model, variables, prompt, length, jax.random.key(seed), real
        )[0]
    run = functools.partial(continue_prompts, **sampling)
    return jax.jit(run, static_argnums=(0, 3))(
        model, variables, prompt, length, jax.random.key(seed), is_prompt
    )


def _with_exit(model: LanguageModel, exit: str, threshold: float) -> LanguageModel:
    """The same model, whose stack ends its passes early.

    Raises:
      ReslabError: If the stack has no such end.
    """
    if exit == "halting":
        # Stacks that learn when to halt have no threshold to give.
        ways = {"saves_passes": True}, {"exit": exit}
    else:
        ways = ({"exit": exit, "threshold": threshold},)
    accepts = functools.partial(registry.accepts, "stacks", model.stack)
    way = next((way for way in ways if all(map(accepts, way))), None)
    if way is None:
        raise ReslabError(
            f"exit {exit!r}",
            expected="a stack that can end early",
            got=str(model.stack),
            hint="stack act or ponder" if exit == "halting" else "stack huginn",
        )
    parsed = registry.parse(str(model.stack))
    stack = registry.spec_text(parsed.name, {**parsed.arguments, **way})
    # Raises for any other value.
    registry.unbound("stacks", stack, blocks=(), depth=model.depth)
    return model.clone(stack=stack)


def _padded(prompt: Any, is_prompt: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Prompts as one array, and which of its tokens count; None is all.

    Raises:
      ReslabError: If a prompt has no tokens.
    """
    if is_prompt is None and not hasattr(prompt, "shape"):
        lengths = [len(row) for row in prompt]
        if lengths and min(lengths) != max(lengths):
            is_prompt = np.arange(max(lengths)) < np.array(lengths)[:, None]
            rows = [[*row, *[0] * (max(lengths) - len(row))] for row in prompt]
            prompt = np.array(rows)
    prompt = np.asarray(prompt, np.int32)
    if prompt.ndim != 2 or not prompt.size:
        raise ReslabError(
            "prompt", expected="at least one token", got=f"shape {prompt.shape}"
        )
    if is_prompt is None:
        return prompt, None
    is_prompt = np.asarray(is_prompt, bool)
    if is_prompt.shape != prompt.shape:
        raise ReslabError(
            "is_prompt", expected=f"shape {prompt.shape}", got=str(is_prompt.shape)
        )
    if not np.all(np.any(is_prompt, axis=1)):
        raise ReslabError("prompt", expected="at least one token in every row")
    return prompt, is_prompt


def continue_prompts(
    model: LanguageModel,
    variables: Any,
    prompt: jax.Array,
    length: int,
    key: jax.Array,
    is_prompt: jax.Array | None = None,
    **sampling: Any,
) -> jax.Array:
    """Continues prompts: one pass over them, then token by token.

    Args:
      model: The model.
      variables: Its parameters, and its state where it has one.
      prompt: Token ids (batch, prompt length).
      length: Number of tokens to add.
      key: Random key.
      is_prompt: Which tokens are in the prompt (batch, prompt length); None is all.
      **sampling: Options of `sample_token`.

    Returns:
      The new tokens (batch, length).
    """
    start = prompt.shape[1]
    begun = prefill(model, variables, prompt, start + length, is_prompt)
    lengths = jnp.full(prompt.shape[:1], start, jnp.int32)
    if is_prompt is not None:
        lengths = jnp.sum(is_prompt, axis=1, dtype=jnp.int32)
    tokens, _ = continue_state(
        model, variables, begun, lengths, length, key, **sampling
    )
    return tokens


def prefill(
    model: LanguageModel,
    variables: Any,
    prompt: jax.Array,
    length: int,
    is_prompt: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """Reads prompts.

    Args:
      model: The model.
      variables: Its parameters, and its state where it has one.
      prompt: Token ids (batch, prompt length).
      length: Number of tokens that the state has room for.
      is_prompt: Which tokens are in the prompt (batch, prompt length); None is all.

    Returns:
      Logits (batch, vocabulary) of the next token, and the mixers' state.
    """
    batch, start = prompt.shape
    state = model.init_state(batch, length)
    positions = jnp.broadcast_to(jnp.arange(start, dtype=jnp.int32), prompt.shape)
    if is_prompt is not None:
        positions = jnp.maximum(jnp.cumsum(is_prompt, axis=1, dtype=jnp.int32) - 1, 0)
    return _logits_after(model, variables, prompt, positions, state, is_prompt)


def continue_state(
    model: LanguageModel,
    variables: Any,
    begun: tuple[jax.Array, Any],
    lengths: jax.Array,
    length: int,
    key: jax.Array,
    **sampling: Any,
) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    """Continues sequences token by token from the mixers' state.

    Args:
      model: The model.
      variables: Its parameters, and its state where it has one.
      begun: Logits (batch, vocabulary) of the next token, and the mixers' state.
      lengths: Number of tokens so far (batch,).
      length: Number of tokens to add.
      key: Random key.
      **sampling: Options of `sample_token`.

    Returns:
      The new tokens (batch, length), and `begun` after them.
    """

    def one_token(carry, index):
        logits, state = carry
        token = sample_token(logits, jax.random.fold_in(key, index), **sampling)
        token = token.astype(jnp.int32)[:, None]
        positions = lengths[:, None] + index
        return _logits_after(model, variables, token, positions, state), token[:, 0]

    steps = jnp.arange(length, dtype=jnp.int32)
    begun, tokens = jax.lax.scan(one_token, begun, steps)
    return tokens.T, begun


def _logits_after(model, variables, tokens, positions, state, is_real=None):
    """Logits of the token after those given, and the new state."""
    x, state = model.apply(
        variables,
        tokens,
        positions=positions,
        segments=None if is_real is None else is_real.astype(jnp.int32),
        state=state,
        method="hidden",
    )
    last = x[:, -1:]
    if is_real is not None:
        # The last real token.
        index = tokens.shape[1] - 1 - jnp.argmax(is_real[:, ::-1], axis=1)
        last = jnp.take_along_axis(x, index[:, None, None], axis=1)
    logits: Any = model.apply(variables, last, method="logits")
    return logits[:, 0], state
