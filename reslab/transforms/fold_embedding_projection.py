"""Projections beside embedding and head become part of them once trained."""

from typing import Any

from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.transforms import _stream


def build(
    variables: ModelState, fields: _stream.Fields
) -> tuple[ModelState, dict[str, Any]]:
    """Takes the two square projections into the tables that they follow and precede.

        embedding' = embedding . P_in,    head' = P_out . head

    The head becomes one of its own if it was tied. The logits stay what they were, up
    to rounding, and the model has neither the parameters nor the products of
    `model.use_embedding_projection` any more. Training on is another thing than with
    them: Muon no longer moves what the tables hold.

    Reference: Park et al., 2025, https://arxiv.org/abs/2506.19697, Section 3.

    Args:
      variables: Parameters and state of a `LanguageModel`.
      fields: Its config, by dotted name.

    Returns:
      The new parameters, on the host, with the state as it was, and the fields of the
      config that change.

    Raises:
      ReslabError: If the model has no such projections.
    """
    if not fields["model.use_embedding_projection"]:
        raise ReslabError(
            "fold_embedding_projection: model.use_embedding_projection",
            expected="True, a model that has the projections",
            got="False",
        )
    leaves = _stream.take(variables["params"])
    changes = _stream.untie(leaves, fields)
    leaves["embedding"] = leaves["embedding"] @ leaves.pop("embedding_projection")
    leaves["head"] = leaves.pop("head_projection") @ leaves["head"]
    given = _stream.give(leaves, variables["params"])
    changes["model.use_embedding_projection"] = False
    return {**variables, "params": given}, changes
