"""Setup of a run: model, optimizer, state and their shardings."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import extension, precision, registry, surroundings
from reslab.core.errors import ReslabError
from reslab.core.layout import layouts
from reslab.core.model_state import model_state_of
from reslab.core.parameters import NamedModule, logical_axes
from reslab.core.trees import first_match, named_leaves, unbox
from reslab.core.types import SEQUENCE_AXIS
from reslab.optim.base.group import parse_groups
from reslab.optim.groups import Plan, grouped, plans
from reslab.optim.guard import guarded, parse_policy
from reslab.parallel.mesh import batch_parts, replicated, tree_sharding, use_mesh
from reslab.train.tasks import Task, make_task

if TYPE_CHECKING:  # Orbax takes a second to import, and a model needs no checkpoint.
    from reslab.train.checkpoint import Checkpoints


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
      step: Number of completed steps, int32.
      params: The model's parameters.
      opt_state: The optimizer's state.
      model_state: What the model keeps beside its parameters, by collection.
    """

    step: Any
    params: Any
    opt_state: Any
    model_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """Variables of the model."""
        return {"params": self.params, **self.model_state}


def build_model(config: ConfigDict, task: Task, platform: str) -> Any:
    """Builds the model that a config describes.

    Args:
      config: The resolved config.
      task: What it is trained to do.
      platform: The JAX platform that will run it.

    Returns:
      The model, without parameters.

    Raises:
      ReslabError: If a value is out of range, or the config sets a field that this
        model does not have.
    """
    model = config.model
    dtypes = precision.resolve(
        config.precision.parameters, config.precision.compute, platform
    )
    if model.kernels == "pallas" and platform != "tpu":
        raise ReslabError(
            "model.kernels", expected="a TPU for 'pallas'", got=platform, hint="auto"
        )
    fields = {key: model[key] for key in model if key not in ("name", "loop")}
    defaults = configs.load("base").model
    for key, value in fields.items():
        if not registry.accepts("models", model.name, key) and value != defaults[key]:
            raise ReslabError(
                f"model.{key}",
                expected=f"its default: model {model.name!r} has no such field",
                got=repr(value),
            )
    return registry.make(
        "models",
        model.name,
        # Scanned layers slow a CPU by some 30%; unrolled layers cost compile time that
        # grows with depth.
        is_unrolled={"auto": platform == "cpu", "scan": False, "unroll": True}[
            model.loop
        ],
        dtype=dtypes.compute,
        param_dtype=dtypes.parameters,
        **fields,
        **task.model_fields(),
    )


def build_optimizer(
    config: ConfigDict, boxed: Any
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """Builds the optimizer over groups of parameters, and the learning rate.

    Args:
      config: The resolved config.
      boxed: The parameters, or their shapes, with their logical axis names.

    Returns:
      The gradient transformation and the learning rate at each step.

    Raises:
      ReslabError: If a group matches nothing or an option is wrong.
    """
    optim = config.optim
    factor = registry.make(
        "schedules", optim.schedule, **surroundings.Schedules(steps=config.train.steps)
    )
    transformation = grouped(
        optim.name,
        unbox(boxed),
        parse_groups(optim.groups),
        learning_rate=optim.learning_rate,
        schedule=factor,
        weight_decay=optim.weight_decay,
        clip=optim.clip,
        layouts=layouts(boxed),
        steps=config.train.steps,
    )
    policy = parse_policy(config.train.on_bad_step)
    if policy.name != "halt":
        transformation = guarded(transformation, policy)
    return transformation, lambda step: optim.learning_rate * factor(step)


def parameter_plans(config: ConfigDict, boxed: Any) -> dict[str, Plan]:
    """Returns the update rule of the parameter of every path."""
    optim = config.optim
    return plans(
        optim.name,
        unbox(boxed),
        parse_groups(optim.groups),
        learning_rate=optim.learning_rate,
        weight_decay=optim.weight_decay,
        layouts=layouts(boxed),
    )


def matching_patterns(config: ConfigDict, params: Any) -> dict[str, str]:
    """The pattern that put every parameter path into its group; "" for none."""
    pairs = [(pattern, pattern) for pattern, _ in parse_groups(config.optim.groups)]
    return first_match(list(named_leaves(params)), pairs, "")


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model, its optimizer, and the shapes and places of their state.

    Attributes:
      config: The resolved config.
      mesh: The devices.
      task: What the model is trained to do, and its data.
      model: The model.
      optimizer: The gradient transformation.
      learning_rate: Learning rate at each step.
      shapes: Abstract train state with shardings.
      boxed_params: Abstract parameters with their logical axis names.
    """

    config: ConfigDict
    mesh: Mesh
    task: Task
    model: Any
    optimizer: optax.GradientTransformationExtraArgs
    learning_rate: optax.Schedule
    shapes: TrainState
    boxed_params: Any

    def init(self, found: Mapping[str, Any] | None = None) -> TrainState:
        """Makes the state of step 0, each part on the device where it belongs.

        Args:
          found: `params`, and perhaps `model_state`, to start from; None draws them.
        """
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
        with use_mesh(self.mesh):
            make = jax.jit(self._init, out_shardings=shardings)
            return make(jax.random.key(self.config.seed), dict(found or {}))

    def completed(self, state: TrainState) -> TrainState:
        """Gives a state that was saved without an optimizer's a fresh one."""
        if state.opt_state is not None:
            return state
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.shapes.opt_state)
        with use_mesh(self.mesh):
            make = jax.jit(self.optimizer.init, out_shardings=shardings)
            return state._replace(opt_state=make(state.params))

    def _init(self, key: jax.Array, found: dict[str, Any]) -> TrainState:
        variables = unbox(self.model.init(key, *self.task.example()))
        params = found.get("params", variables["params"])
        return TrainState(
            jnp.zeros((), jnp.int32),
            params,
            self.optimizer.init(params),
            found.get("model_state", model_state_of(variables)),
        )


def named_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of all collections of a model, each by its path in its collection."""
    leaves: dict[str, Any] = {}
    for tree in variables.values():
        found = named_leaves(tree)
        assert not leaves.keys() & found.keys()
        leaves |= found
    return leaves


def restore_variables(
    checkpoints: "Checkpoints", setup: Setup, step: int | None = None
) -> dict[str, Any]:
    """Restores the variables of a checkpoint's model, without the optimizer.

    Args:
      checkpoints: The checkpoints of the run.
      setup: Its setup.
      step: Which step; the newest if None.

    Raises:
      ReslabError: If there is no such checkpoint, or it holds other parameters.
    """
    shapes = setup.shapes
    found = checkpoints.restore_parts(
        {"params": shapes.params, "model_state": shapes.model_state}, step
    )
    return {"params": found["params"], **found["model_state"]}


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Checks that batches divide over the devices and parts of a step.

    Raises:
      ReslabError: If one does not.
    """
    rows = batch_parts(mesh)
    parts = mesh.shape.get(SEQUENCE_AXIS, 1)
    if config.data.length % parts:
        raise ReslabError(
            "data.length",
            expected=f"a multiple of mesh.sequence={parts}",
            got=str(config.data.length),
        )
    parts = config.train.accumulate
    for key, size, unit in (
        ("data.batch", config.data.batch, rows * parts),
        ("eval.batch", config.eval.batch, rows),
    ):
        if size % unit:
            times = f" times train.accumulate ({parts})" if unit > rows else ""
            raise ReslabError(
                key,
                expected=f"a multiple of the {rows} devices that share the batch"
                + times,
                got=str(size),
            )


def make_setup(config: ConfigDict, mesh: Mesh, task: Task | None = None) -> Setup:
    """Builds model and optimizer and works out all shapes; computes nothing.

    Args:
      config: The resolved config.
      mesh: The devices.
      task: Task of the model; None takes the config's.

    Returns:
      The setup.

    Raises:
      ReslabError: If the config cannot be built on this mesh.
    """
    task = task or make_task(config)
    if SEQUENCE_AXIS in mesh.shape and task.unit != "tokens":
        raise ReslabError(
            "mesh.sequence",
            expected=f"1: a model of {task.unit} has no tokens to divide",
            got=str(mesh.shape[SEQUENCE_AXIS]),
        )
    with extension.buildable("the model of this config"):
        model = build_model(config, task, mesh.devices.flat[0].platform)
        limit = getattr(model, "position_limit", None)
    if limit is not None and limit < config.data.length:
        raise ReslabError(
            "data.length",
            expected=f"at most the model's {limit} positions",
            got=str(config.data.length),
        )
    with (
        extension.buildable("what this config describes"),
        use_mesh(mesh),
        extension.held_to_protocols(),
        # A user's model may contain parts of reslab.
        contextlib.nullcontext() if isinstance(model, NamedModule) else logical_axes(),
    ):
        variables = jax.eval_shape(
            lambda: model.init(jax.random.key(config.seed), *task.example())
        )
        boxed = variables["params"]
        optimizer, learning_rate = build_optimizer(config, boxed)
        # Optimizer states are trees like the parameters, so the boxes carry the
        # logical axes over to them.
        boxed_state = TrainState(
            jax.ShapeDtypeStruct((), jnp.int32),
            boxed,
            jax.eval_shape(optimizer.init, boxed),
            model_state_of(variables),
        )
        shardings = tree_sharding(boxed_state, mesh)
    shapes = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape,
            leaf.dtype,
            sharding=sharding if leaf.ndim else replicated(mesh),
        ),
        unbox(boxed_state),
        shardings,
    )
    return Setup(config, mesh, task, model, optimizer, learning_rate, shapes, boxed)
