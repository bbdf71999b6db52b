"""A run that goes on from another."""

import pathlib
from typing import Any

from reslab.core.errors import ReslabError
from reslab.train.checkpoint import Checkpoints
from reslab.train.run import Run
from reslab.train.state import Setup


def inherited(setup: Setup) -> dict[str, Any]:
    """The newest parameters of the run that a run continues from.

    The optimizer begins anew and the schedule from its start: a warmup warms up
    again, the plateau of `infinite(warmup=0, cooldown=0.0)` goes on. Statistics of the
    model go on where both models keep the same.

    Args:
      setup: The setup of the new run.

    Returns:
      `params`, and `model_state` where it fits, as `Setup.init` takes them.

    Raises:
      ReslabError: If there is no such run, its text is written in other tokens, or
        its parameters are of another structure.
    """
    name = setup.config.train.continue_from
    source = Run(pathlib.Path(name))
    shapes = {"params": setup.shapes.params}
    state = {"model_state": setup.shapes.model_state}
    try:
        config = source.config()
        old, new = config.data.tokenizer, setup.config.data.tokenizer
        if old != new:
            raise ReslabError("data.tokenizer", expected=repr(old), got=repr(new))
        with Checkpoints(source.checkpoints, is_read_only=True) as checkpoints:
            try:
                return checkpoints.restore_parts(shapes | state)
            except ReslabError:
                return checkpoints.restore_parts(shapes)
    except ReslabError as error:
        raise ReslabError(f"cannot continue from {name}: {error}") from None
