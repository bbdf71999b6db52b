"""Interventions: activations of a running model, read and changed by name."""

from reslab.observe.interventions.edit import (
    Edit,
    ablate,
    add,
    replace,
    run,
    scale,
)

__all__ = ["Edit", "ablate", "add", "replace", "run", "scale"]
