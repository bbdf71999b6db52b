"""Closed-form cost of a model: FLOPs per token from shapes alone."""

from typing import Any

import jax

from reslab.core import registry
from reslab.core.trees import count_bytes, count_parameters, named_leaves
from reslab.models.lm import LanguageModel


def forward_flops_per_token(model: LanguageModel, params: Any, length: int) -> int:
    """Matrix-product FLOPs of the forward pass, per token.

        2 * (kernel entries, as often as applied) + mixing + 2 * embed * vocabulary

    Attention counts all `length` keys of a query, as the compiled program
    computes them; element-wise work counts nothing. `reslab.observe.flops` counts
    the same from the program itself, and a test holds the two equal.

    Args:
      model: The model.
      params: Its parameters, or their shapes.
      length: Tokens in a sequence.

    Returns:
      FLOPs per token.
    """
    stack = model.make_stack(parent=None)
    linear = registry.unbound("linears", model.linear, features=1)
    # Parameters of projections that are stored, not applied.
    is_idle = getattr(linear, "is_idle", lambda name: False)
    kernels = sum(
        stack.applied_entries(name, _entries(name, leaf), leaf.shape[0])
        for name, leaf in named_leaves(params).items()
        if name.endswith("/kernel") and not is_idle(name)
    )
    # A head's bias is one more row of its kernel.
    head = (model.features + model.use_head_bias) * model.padded_vocabulary
    # Square projections beside the head, if any.
    square = 2 * model.features**2 if model.use_embedding_projection else 0
    mixing = stack.mixing_flops(length, model.features)
    return 2 * (kernels + head + square) + mixing


def _entries(name: str, leaf: Any) -> int:
    """Entries of a kernel in one pass; `pass_...` has an axis of them after layers."""
    return int(leaf.size) // (leaf.shape[1] if "/pass_" in name else 1)


def training_flops_per_token(model: LanguageModel, params: Any, length: int) -> int:
    """FLOPs of a training step per token: the backward pass is twice the forward.

    What is computed again to save memory (`remat`, vocabulary chunks) is left
    out, as in the usual definition of model FLOPs utilization (Chowdhery et
    al., 2022, https://arxiv.org/abs/2204.02311, Appendix B).
    """
    return 3 * forward_flops_per_token(model, params, length)


def effective_parameters(model: LanguageModel, params: Any) -> int:
    """Counts parameters as often as they are applied to a token.

    This is what a model of the same layers would store if they shared nothing.

    Args:
      model: The model.
      params: Its parameters, or their shapes.
    """
    stack = model.make_stack(parent=None)
    return sum(
        _entries(name, leaf) * stack.applications(name)
        if "/segment_" in name
        else int(leaf.size)
        for name, leaf in named_leaves(params).items()
    )


def active_parameters(model: LanguageModel, params: Any) -> int:
    """Counts the parameters that a token meets: of experts, those that it asks.

    Args:
      model: The model.
      params: Its parameters, or their shapes.

    Returns:
      The number; an upper bound where several layers, or several passes of a loop,
      share experts, as a token may ask one of them twice.
    """
    leaves = named_leaves(params)
    idle = sum(leaf.size for name, leaf in leaves.items() if _holds_experts(name))
    if not idle:
        return count_parameters(params)
    asked = model.make_stack(parent=None).asked_parameters(model.features)
    return count_parameters(params) - idle + asked


def _holds_experts(name: str) -> bool:
    """Returns whether a parameter holds a matrix of every expert."""
    return name.endswith("/kernels")


def generation_bytes(model: LanguageModel, length: int) -> tuple[int, int]:
    """Counts the bytes of caches and recurrent states during generation.

    Args:
      model: The model.
      length: Tokens in the sequence.

    Returns:
      Bytes of one sequence, and what they would be if every layer kept all that it
      reads only its own state, not another layer's keys or values.
    """
    stack = model.make_stack(parent=None)

    def size(is_shared):
        state = jax.eval_shape(
            lambda: stack.init_state(1, length, model.features, is_shared=is_shared)
        )
        return count_bytes(state)

    return size(True), size(False)
