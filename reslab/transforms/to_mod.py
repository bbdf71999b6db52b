"""A trained model some of whose layers choose their tokens."""

from typing import Annotated, Any, Literal

from reslab.core import registry
from reslab.core.bounds import Bounds, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.model_state import ModelState
from reslab.transforms import _stream

STARTS_PARAMETERS = True

_SHARE = Bounds(above=0, most=1)


@bounded
def build(
    variables: ModelState,
    fields: _stream.Fields,
    *,
    layers: Annotated[tuple[int, ...], Bounds(least=0)] = (),
    capacity: Annotated[float, _SHARE] = 0.5,
    gate: Literal["linear", "sigmoid"] = "sigmoid",
    predictor_hidden: Whole = 0,
) -> tuple[ModelState, dict[str, Any]]:
    """Gives layers of a uniform stack a router; all other parameters stay.

    The logits change, and the routers are drawn: such a model wants training
    (`reslab train --continue-from`). Layers of a low rank of their attention maps are
    those to convert (`reslab inspect RUN --probe attention_rank`).

    Reference: Luo et al., 2024, https://arxiv.org/abs/2410.13859, Section 3.2; here
    every layer has a router of its own (`stacks/mod`).

    Args:
      variables: Parameters of a `LanguageModel`, and its state.
      fields: Its config, by dotted name.
      layers: Numbers of the layers, from 0; () is every other one, from 1.
      capacity: Share of the tokens that they compute.
      gate: Function of the router that weighs what they add.
      predictor_hidden: Width of the predictor; 0 is the router itself.

    Returns:
      The variables, and the field of the config that changes.

    Raises:
      ReslabError: If the stack is not uniform.
    """
    if fields["model.stack"] != "uniform":
        raise ReslabError(
            "to_mod: model.stack",
            expected="'uniform'",
            got=repr(fields["model.stack"]),
        )
    arguments: dict[str, Any] = {"capacity": capacity, "gate": gate}
    arguments |= {"layers": layers} if layers else {}
    arguments |= {"predictor_hidden": predictor_hidden} if predictor_hidden else {}
    return variables, {"model.stack": registry.spec_text("mod", arguments)}
