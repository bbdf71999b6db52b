"""Conversion of a plain residual to another that equals it at initialization."""

from typing import Any

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.nn.base import sites
from reslab.transforms import _stream

# Parameters of the new model that the old one lacks start as in a new model, and the
# logits must not change.
STARTS_PARAMETERS = True
KEEPS_LOGITS = True


def build(
    variables: ModelState, fields: _stream.Fields, *, to: str = "hyper"
) -> tuple[ModelState, dict[str, Any]]:
    """Gives a trained model with a plain residual another one that starts plain.

    What the old model has learned stays as it is. The parameters of the new residual
    start as they do in a new model, where this residual computes what a plain one
    would: `hyper`, of streams that are all alike; `ddl(blend=0.0)`, whose delta rule
    has no share yet; `denseformer`, which starts with the latest layer alone; Delta
    Attention Residuals, `delta_attnres(gate="alpha")`, whose gate is shut; any
    other that says so. Training can continue from the result.

    Reference: the initial values of the residual's own paper.

    Args:
      variables: Parameters of a `LanguageModel`, and its state.
      fields: Its config, by dotted name.
      to: Spec of the new residual.

    Returns:
      The same parameters, and the field of the config that changes.

    Raises:
      ReslabError: If the model's residual is not plain, or the new one does not start
        as one. (A final norm that minds the length of what it normalizes is refused
        later, by its logits.)
    """
    given = fields["model.residual"]
    if registry.parse(given).name != "plain":
        raise ReslabError(
            "change_residual: model.residual", expected="plain", got=repr(given)
        )
    table = sites.of_model(
        fields["model.stack"],
        _stream.specs(fields, "block"),
        fields["model.depth"],
    )
    residual = registry.make(
        "residuals", to, depth=len(table) - 1, sites=table, parent=None
    )
    if not residual.reduces_to_plain_at_init:
        raise ReslabError(
            f"change_residual: {to!r} does not start as a plain residual",
            expected="one that does",
            got=to,
            hint="hyper, denseformer, ddl(blend=0.0) or delta_attnres(gate='alpha')",
        )
    return variables, {"model.residual": to}
