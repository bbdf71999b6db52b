"""A run of several tasks' factors, which applies and trains those of one."""

from typing import Any

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.transforms import _stream


def build(
    variables: ModelState, fields: _stream.Fields, *, task: str
) -> tuple[ModelState, dict[str, Any]]:
    """Applies the factors of one task; they alone learn in the run that is made.

    Args:
      variables: Parameters of a `LanguageModel` with the factors of several tasks.
      fields: Its config, by dotted name.
      task: Name of the task; "" applies none of the factors, and nothing is frozen.

    Returns:
      The variables, and the fields of the config that change.

    Raises:
      ReslabError: If there is no such task.
    """
    linear = registry.parse(fields["model.linear"])
    if linear.name != "lora" or not linear.arguments.get("tasks"):
        raise ReslabError(
            "choose_task: model.linear",
            expected="lora with tasks",
            got=repr(fields["model.linear"]),
            hint="transform add_lora(tasks=...)",
        )
    spec = registry.spec_text("lora", {**linear.arguments, "task": task})
    made: Any = registry.unbound("linears", spec, features=1)
    changes: dict[str, Any] = {"model.linear": spec}
    if made.chosen:
        groups = ((f"/{made.chosen}_task_", {}), (".", {"freeze": True}))
        changes["optim.groups"] = groups
    return variables, changes
