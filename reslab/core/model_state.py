"""Model state: the collections of a model beside its parameters.

Loops over layers stack them along depth, the train state holds them, checkpoints
save them. A module trains, as against being evaluated, exactly where its caller made
`batch_stats` mutable; no argument says so.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves

# Written in the forward pass: running means, variances, counters, biases of routers.
BATCH_STATS = "batch_stats"
# Written in the backward pass: a custom rule returns the next value as the derivative
# by the present one. Unlike a side effect, this is correct under scan,
# rematerialization and any sharding.
GRADIENT_STATS = "gradient_stats"

# Never written: quantized weights, fixed tables. Any dtype; the optimizer sees none.
CONSTANTS = "constants"

MODEL_STATE = (BATCH_STATS, GRADIENT_STATS, CONSTANTS)

# Every module with running statistics counts its steps under this name.
UPDATES = "updates"

ModelState = Mapping[str, Any]


def model_state_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The state among the collections of a model; empty where it keeps none."""
    return {name: variables[name] for name in MODEL_STATE if variables.get(name)}


def check_updated(variables: Mapping[str, Any]) -> None:
    """Checks that the running statistics of a model were ever updated.

    Args:
      variables: The collections of the model, concrete.

    Raises:
      ReslabError: If some were not: what they normalize by is arbitrary.
    """
    leaves = named_leaves(variables.get(BATCH_STATS, {}))
    for name, leaf in leaves.items():
        if name.split("/")[-1] == UPDATES and not np.all(jax.device_get(leaf) > 0):
            raise ReslabError(
                "evaluation with running statistics that were never updated",
                expected="a model that has trained at least one step",
                got=f"0 updates of {name.removesuffix('/' + UPDATES) or 'the norm'}",
                hint="train it first; training uses the statistics of its batches",
            )
