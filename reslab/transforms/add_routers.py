"""Routers before the layers of a trained model."""

from typing import Any, Literal

from reslab.core import registry
from reslab.core.bounds import Count, Fraction, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.transforms import _stream

KEEPS_LOGITS = True
STARTS_PARAMETERS = True


@bounded
def build(
    variables: ModelState,
    fields: _stream.Fields,
    *,
    stack: Literal["dr_llm", "first"] = "dr_llm",
    labels: str = "",
    prompt: Count = 32,
    hidden: Count = 128,
    target: Fraction = 0.75,
    steps: Whole = 0,
) -> tuple[ModelState, dict[str, Any]]:
    """Gives every layer a router; they alone learn in the run that is made.

    At first every layer is applied, so the logits stay. `dr_llm` learns the paths in
    `labels`, with AdamW at 1e-3 and a decay of 0.01; `first` learns by the task's own
    loss how many layers it can do without.

    References: Heakl et al., 2025, https://arxiv.org/abs/2510.12773; Jain et al., 2024,
    https://arxiv.org/abs/2410.12513.

    Args:
      variables: Parameters of a `LanguageModel`, and its state.
      fields: Its config, by dotted name.
      stack: The kind of routers.
      labels: File that `reslab search paths RUN` has written, for `dr_llm`.
      prompt: First tokens that routers read.
      hidden: Width of routers of `dr_llm`.
      target: Share of the layers that `first` is to apply.
      steps: Steps of the new run; 0 leaves them.

    Returns:
      The variables, and the fields of the config that change.

    Raises:
      ReslabError: If the stack is not uniform, or `dr_llm` has no labels.
    """
    old = fields["model.stack"]
    if registry.parse(old).name != "uniform":
        raise ReslabError(
            "add_routers: model.stack", expected="'uniform'", got=repr(old)
        )
    if (stack == "dr_llm") != bool(labels):
        raise ReslabError(
            "add_routers: labels",
            expected="a file of `reslab search paths` for dr_llm, none for first",
            got=f"{labels!r} for {stack}",
        )
    own = {"hidden": hidden} if stack == "dr_llm" else {"target": target}
    task = registry.parse(fields["train.task"]).name
    is_graded = task in ("graded", "graded_routes")
    changes = {
        "model.stack": registry.spec_text(stack, {"prompt": prompt, **own}),
        "train.task": registry.spec_text(
            "graded_routes" if is_graded else "routes",
            {"labels": labels} if labels else {},
        ),
        "optim.name": "adamw",
        "optim.learning_rate": 1e-3,
        "optim.weight_decay": 0.01,
        "optim.groups": (("router_", {}), (".", {"freeze": True})),
    }
    return variables, changes | ({"train.steps": steps} if steps else {})
