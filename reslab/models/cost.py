"""Closed-form cost of a model: FLOPs per token from shapes alone."""

from typing import Any

import jax

from reslab.core.trees import count_bytes, named_leaves
from reslab.models.lm import LanguageModel


def forward_flops_per_token(model: LanguageModel, params: Any, length: int) -> int:
    """Matrix-product FLOPs of the forward pass, per token.

        2 * (kernel entries, once per pass) + mixing + 2 * embed * vocabulary

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
    kernels = sum(
        int(leaf.size)
        for name, leaf in named_leaves(params).items()
        if name.endswith("/kernel")
    )
    # A head's bias is one more row of its kernel.
    head = (model.features + model.use_head_bias) * model.padded_vocabulary
    # Square projections beside the head, if any.
    square = 2 * model.features**2 if model.use_embedding_projection else 0
    mixing = stack.mixing_flops(length, model.features)
    return 2 * (stack.passes * kernels + head + square) + mixing


def training_flops_per_token(model: LanguageModel, params: Any, length: int) -> int:
    """FLOPs of a training step per token: the backward pass is twice the forward.

    What is computed again to save memory (`remat`, vocabulary chunks) is left
    out, as in the usual definition of model FLOPs utilization (Chowdhery et
    al., 2022, https://arxiv.org/abs/2204.02311, Appendix B).
    """
    return 3 * forward_flops_per_token(model, params, length)


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
