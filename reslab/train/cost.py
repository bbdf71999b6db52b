"""FLOPs of a run's training step."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from reslab.core.types import MESH_AXES
from reslab.observe.flops import count_flops
from reslab.train.state import Setup, parameter_plans
from reslab.train.step import gradient_in_parts, training_objective


@contextlib.contextmanager
def on_a_plain_device() -> Iterator[None]:
    """Traces for one device without kernels, whose products can all be counted."""
    plain = AbstractMesh(
        (1,) * len(MESH_AXES),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        abstract_device=AbstractDevice("cpu", None, "cpu"),
    )
    with jax.sharding.use_abstract_mesh(plain):
        yield


def training_flops_per_unit(setup: Setup) -> int:
    """Counts the FLOPs of a training step, per token or other unit of the task.

    Gradients of frozen parameters are not computed and do not count. Recomputation
    (`model.remat`) does not count either.

    Args:
      setup: Model, optimizer, task and config.
    """
    model, shapes = setup.model, setup.shapes
    planned = parameter_plans(setup.config, setup.boxed_params)
    if not any(plan.freeze for plan in planned.values()):
        return setup.task.flops_per_unit(model, shapes.params)
    changes = {"remat": "none", "kernels": "reference"}
    fields = {k: v for k, v in changes.items() if hasattr(model, k)}
    setup = dataclasses.replace(setup, model=model.clone(**fields))
    gradient = gradient_in_parts(training_objective(setup), 1)
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (shapes.params, shapes.model_state),
    )
    rows = setup.config.data.batch  # Norms over a batch reject a single row.
    batch, key = setup.task.batch_shapes(rows), jax.eval_shape(jax.random.key, 0)
    with on_a_plain_device():
        flops = count_flops(gradient, *state, batch, key)
    return flops // (rows * setup.task.units_per_example)
