"""A trained model whose layers are left out, repeated or reordered."""

from typing import Any

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.transforms import _stream


def build(
    variables: ModelState, fields: _stream.Fields, *, layers: tuple[int, ...]
) -> tuple[ModelState, dict[str, Any]]:
    """Applies the layers of a run along a path; the parameters stay.

    Layers that the path leaves out stay in the checkpoint, and learn nothing; one that
    it names twice learns from both.

    Args:
      variables: Parameters of a `LanguageModel`, and its state.
      fields: Its config, by dotted name.
      layers: Numbers of the layers to apply, from 0.

    Returns:
      The variables, and the field of the config that changes.

    Raises:
      ReslabError: If the stack is neither uniform nor a path, or there is no such
        layer.
    """
    stack = fields["model.stack"]
    if registry.parse(stack).name not in ("uniform", "path"):
        raise ReslabError(
            "to_path: model.stack", expected="'uniform' or 'path'", got=repr(stack)
        )
    if not layers:
        raise ReslabError("to_path: layers", expected="at least one", got="()")
    return variables, {
        "model.stack": registry.spec_text("path", {"layers": tuple(layers)})
    }
