"""LoRA: a dense projection with low-rank changes, by pass of a loop or by task."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, NonNegative, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.nn.linears.dense import Dense


@bounded
class LoRA(Dense):
    """Adds to a product a product of low rank.

        y = x . kernel + scale * (x . down[t]) . up[t] (+ bias),    t = pass

    In a stack that is applied several times each pass may have factors of its own, so
    that layers with one kernel differ in depth. `up` starts at zero: a new layer
    computes what `dense` does, and its kernel has the same name.
    The transforms `add_lora` and `merge_lora` go from one to the other.

    With `tasks` one model holds the factors of several, each with parameters of their
    own names, and applies those of one: `choose_task` makes a run that applies, and
    trains, another's.

    References: Hu et al., 2021, https://arxiv.org/abs/2106.09685, Section 4.1; one pair
    for each depth: Bae et al., 2024, https://arxiv.org/abs/2410.20672, Section 2.3.

    Attributes:
      rank: Features between the factors; 0 leaves them out.
      alpha: The scale is alpha / rank; 0 is a scale of 1.
      depths: Number of passes with factors of their own; later ones have the last.
      tasks: Names of tasks with factors of their own; () is one, without a name.
      task: The task whose factors are applied, by its name or its number; "" applies
        none of them.
      (and those of `LinearModule`)

    Raises:
      ReslabError: If there is no such task, or both tasks and passes.
    """

    rank: Whole = 8
    alpha: NonNegative = 0.0
    depths: Count = 1
    tasks: tuple[str, ...] = ()
    task: str | int = 0

    @property
    def factor(self) -> float:
        """The scale of the low-rank product."""
        return self.alpha / self.rank if self.alpha and self.rank else 1.0

    @property
    def chosen(self) -> str:
        """Name of the task whose factors are applied; "" if none are.

        Raises:
          ReslabError: If there is no such task.
        """
        names = self.tasks
        bad = [n for n in names if not (isinstance(n, str) and n.isidentifier())]
        if bad or len(set(names)) < len(names):
            raise ReslabError(
                "linears 'lora': tasks",
                expected="different names, such as ('code', 'prose')",
                got=repr(names),
            )
        if names and self.depths > 1:
            raise ReslabError(
                "linears 'lora': tasks",
                expected="factors of tasks or of passes",
                got=f"{len(names)} tasks and {self.depths} passes",
            )
        if not names or self.task == "":
            return ""
        if isinstance(self.task, int) and 0 <= self.task < len(names):
            return names[self.task]
        if self.task not in names:
            raise ReslabError(
                "linears 'lora': task",
                expected=f"one of {', '.join(names)}, or its number",
                got=repr(self.task),
            )
        return self.task

    def is_idle(self, name: str) -> bool:
        """Returns whether a parameter is a factor of a task that is not applied."""
        own = any(f"/{task}_task_" in name for task in self.tasks)
        return own and f"/{self.chosen}_task_" not in name

    @nn.compact
    def __call__(self, x: jax.Array, pass_index: int | jax.Array = 0) -> jax.Array:
        """Maps (..., inputs) to (..., features), in the pass of this number."""
        y = self.multiply(x)
        if not self.rank:
            return self.add_bias(y)
        if self.tasks:
            found = {task: self._factors(x, f"{task}_task", 1) for task in self.tasks}
            if not self.chosen:
                return self.add_bias(y)
            return self._changed(x, y, found[self.chosen], 0)
        if self.depths > 1:
            return self._changed(
                x, y, self._factors(x, "pass", self.depths), pass_index
            )
        return self._changed(x, y, self._factors(x, "lora", 1), 0)

    def _factors(self, x: jax.Array, prefix: str, rows: int) -> tuple:
        """Makes a pair of factors for each of several passes."""
        inputs = self.inputs_of(x)
        std = 1 / math.sqrt(math.prod(inputs))
        down = Factor(
            (rows, *inputs, self.rank),
            (None, *self.input_axes, None),
            std,
            self.param_dtype,
            name=f"{prefix}_down",
        )()
        up = Factor(
            (rows, self.rank, *self.outputs),
            (None, None, *self.output_axes),
            0.0,
            self.param_dtype,
            name=f"{prefix}_up",
        )()
        return down, up

    def _changed(self, x, y, pair, row) -> jax.Array:
        """Adds the product of one pair of factors."""
        down, up = (
            jax.lax.dynamic_index_in_dim(a, row, keepdims=False).astype(self.dtype)
            for a in pair
        )
        z = jnp.tensordot(x.astype(self.dtype), down, len(self.inputs_of(x)))
        z = jnp.tensordot(z, up, 1)
        return self.add_bias(y + jnp.asarray(self.factor, z.dtype) * z)


class Factor(nn.Module):
    """A kernel for each pass (passes, ...).

    Attributes:
      shape: Its shape.
      axes: Logical names of its axes.
      std: Initial standard deviation.
      param_dtype: Dtype in which it is stored.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float
    param_dtype: object

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the kernels."""
        init = nn.initializers.normal(self.std)
        return parameter(self, "kernel", init, self.shape, self.axes, self.param_dtype)


build = LoRA
