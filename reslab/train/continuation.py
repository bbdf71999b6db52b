"""A run that continues from another run's parameters."""

import pathlib
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import ReslabError
from reslab.train.checkpoint import Checkpoints
from reslab.train.run import Run
from reslab.train.state import Setup


def inherited(
    setup: Setup, pinned: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of the run that a run continues from.

    The optimizer starts fresh and the schedule at its beginning: a warmup warms up
    again, the plateau of `infinite(warmup=0, cooldown=0.0)` continues. The model's
    statistics carry over where both models have the same.

    Args:
      setup: The setup of the new run.
      pinned: The checkpoint that the new run began from, where it began before; the
        newest if None.

    Returns:
      `params`, and `model_state` where it fits, as `Setup.init` takes them; and the
      checkpoint that they are from: its `step` and `sha256`.

    Raises:
      ReslabError: If there is no such run, its text is written in other tokens, its
        parameters are of another structure, or the pinned checkpoint is gone.
    """
    name = setup.config.train.continue_from
    source = Run(pathlib.Path(name))
    shapes = {"params": setup.shapes.params}
    state = {"model_state": setup.shapes.model_state}
    try:
        data = source.config().data
        source.result()  # Raises if it does not belong to the run.
        record = setup.task.record()
        if "tokenizer_sha256" not in source.recorded().get("corpus", {}):
            # Older versions recorded only its name.
            old, new = data.tokenizer, setup.config.data.tokenizer
            if old != new:
                raise ReslabError("data.tokenizer", expected=repr(old), got=repr(new))
        # The text may differ if it is written in the same tokens.
        tokens = {k: v for k, v in record.items() if k == "tokenizer_sha256"}
        with Checkpoints(
            source.checkpoints, is_read_only=True, identity=source.identity(tokens)
        ) as checkpoints:
            step = pinned["step"] if pinned else checkpoints.latest_step()
            try:
                found = checkpoints.restore_parts(shapes | state, step)
            except ReslabError:
                found = checkpoints.restore_parts(shapes, step)
            assert step is not None  # Without a checkpoint there is nothing to restore.
            digest = checkpoints.seal(step)
        if pinned and digest != pinned["sha256"]:
            raise ReslabError(
                f"step {step} is another than this run began from",
                expected=f"sha256 {pinned['sha256'][:12]}",
                got=digest[:12],
                hint="--run with another directory",
            )
        return found, {"step": step, "sha256": digest}
    except ReslabError as error:
        raise ReslabError(f"cannot continue from {name}: {error}") from None
