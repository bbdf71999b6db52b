"""Interventions: activations of a running model, read and changed by name."""

from reslab.observe.interventions.edit import (
    Activations,
    Edit,
    ablate,
    add,
    replace,
    run,
    scale,
)

__all__ = ["Activations", "Edit", "ablate", "add", "replace", "run", "scale"]
