"""Factors of LoRA beside every kernel of a trained model."""

from typing import Any

from reslab.core import registry
from reslab.core.bounds import Count, NonNegative, bounded
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.transforms import _stream

KEEPS_LOGITS = True
STARTS_PARAMETERS = True
# The parameters that learn where all others are frozen.
FACTORS = "/(lora|[a-z0-9_]+_task)_(down|up)/"


@bounded
def build(
    variables: ModelState,
    fields: _stream.Fields,
    *,
    rank: Count = 8,
    alpha: NonNegative = 0.0,
    tasks: tuple[str, ...] = (),
    freezes: bool = False,
) -> tuple[ModelState, dict[str, Any]]:
    """Puts a pair of factors beside every projection, whose product is zero at first.

    The logits stay. `freezes` trains the factors alone, as a group of `optim.groups`
    says; `choose_task` does so for one of several tasks. A run that has tasks is given
    further ones, of the same rank. Routers of stack `first`, if frozen, decide in
    training as in evaluation: the factors repair what the skipped layers did.

    Reference: Hu et al., 2021, https://arxiv.org/abs/2106.09685, Section 4.1.

    Args:
      variables: Parameters of a `LanguageModel`, and its state.
      fields: Its config, by dotted name.
      rank: Features between the factors.
      alpha: The scale is alpha / rank; 0 is a scale of 1.
      tasks: Names of tasks, each with a pair of its own; () is one pair.
      freezes: Whether all but the factors is frozen in the run that is made.

    Returns:
      The variables, and the fields of the config that change.

    Raises:
      ReslabError: If projections are neither dense nor those of tasks.
    """
    old = registry.parse(fields["model.linear"])
    has_tasks = old.name == "lora" and "tasks" in old.arguments
    if fields["model.linear"] != "dense" and not (has_tasks and tasks):
        raise ReslabError(
            "add_lora: model.linear",
            expected="'dense', or 'lora' of tasks that are to be more",
            got=repr(fields["model.linear"]),
        )
    arguments: dict[str, Any] = {"rank": rank} | ({"alpha": alpha} if alpha else {})
    if has_tasks:
        arguments = dict(old.arguments)
    if tasks:
        arguments["tasks"] = (*arguments.get("tasks", ()), *tasks)
    changes: dict[str, Any] = {"model.linear": registry.spec_text("lora", arguments)}
    if freezes:
        changes["optim.groups"] = ((FACTORS, {}), (".", {"freeze": True}))
        stack = registry.parse(fields["model.stack"])
        if stack.name == "first":
            decided = {**stack.arguments, "is_soft": False}
            changes["model.stack"] = registry.spec_text("first", decided)
    return variables, changes
