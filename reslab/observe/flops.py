"""FLOPs of a traced function, counted exactly from its jaxpr."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from reslab.core.errors import ReslabError


def count_flops(function: Callable[..., Any], *abstract_args: Any) -> int:
    """Counts the FLOPs of the matrix products and convolutions of a function.

    A multiplication and its addition are two. Loops count as often as they run,
    recomputation (`jax.checkpoint`) as often as it happens, a branch as the most
    expensive one, and a `shard_map` body once per device of its mesh axes. Taps of
    a convolution that fall on padding or between dilated elements count nothing,
    so its two gradients cost exactly what it costs. A Pallas kernel counts what
    its `cost_estimate` says, nothing without one. Element-wise work is left out.

    Args:
      function: Any function that JAX can trace; nothing is run or compiled.
      *abstract_args: Its arguments: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The number of FLOPs over all devices.

    Raises:
      ReslabError: If a product sits in a loop of unknown length.

    >>> x = jax.ShapeDtypeStruct((4, 8), np.float32)
    >>> count_flops(lambda x: x @ x.T, x)
    256
    """
    return _count(jax.make_jaxpr(function)(*abstract_args))


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    params = equation.params
    match equation.primitive.name:
        case "dot_general":
            (_, contracting), (_, batch) = params["dimension_numbers"]
            return _product(equation, {*contracting, *batch})
        case "ragged_dot_general":
            numbers = params["ragged_dot_dimension_numbers"]
            (_, contracting), (_, batch) = numbers.dot_dimension_numbers
            groups = numbers.rhs_group_dimensions
            return _product(equation, {*contracting, *batch, *groups})
        case "conv_general_dilated":
            return _convolution(equation)
        case "scan":
            return params["length"] * _count(params["jaxpr"])
        case "while":
            if _count(params["body_jaxpr"]) or _count(params["cond_jaxpr"]):
                raise ReslabError(
                    "count_flops: a while loop of unknown length multiplies matrices",
                    hint="jax.lax.scan, or fori_loop with constant bounds",
                )
            return 0
        case "cond":
            return max(_count(branch) for branch in params["branches"])
        case "shard_map":
            sizes = dict(params["mesh"].shape)
            devices = math.prod(sizes[name] for name in params["newly_manual_axes"])
            return devices * _count(params["jaxpr"])
        case "pallas_call":
            estimate = params["cost_estimate"]
            return int(estimate.flops) if estimate is not None else 0
        case "custom_linear_solve":
            # The equation also holds the transposed solve, which does not run.
            return _count(params["jaxprs"].solve)
        case _:
            # Calls (jit, checkpoint, custom_jvp, custom_vjp) hold one jaxpr; derivative
            # rules of the custom ones are functions and not traced yet.
            return sum(_count(j) for value in params.values() for j in _jaxprs(value))


def _jaxprs(value: Any) -> Iterator[Any]:
    if hasattr(value, "eqns"):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _jaxprs(item)


def _product(equation: Any, shared: set[int]) -> int:
    """Counts products: elements of the left side times free indices of the right."""
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    free = (size for axis, size in enumerate(right) if axis not in shared)
    return 2 * math.prod(left) * math.prod(free)


def _convolution(equation: Any) -> int:
    params = equation.params
    numbers = params["dimension_numbers"]
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    out = equation.outvars[0].aval.shape
    batch, features = (out[axis] for axis in numbers.out_spec[:2])
    products = batch * features * right[numbers.rhs_spec[1]]
    for i, (low, _) in enumerate(params["padding"]):
        size = left[numbers.lhs_spec[2 + i]]
        outputs = np.arange(out[numbers.out_spec[2 + i]]) * params["window_strides"][i]
        taps = np.arange(right[numbers.rhs_spec[2 + i]]) * params["rhs_dilation"][i]
        index, offset = np.divmod(
            outputs[:, None] + taps[None, :] - low, params["lhs_dilation"][i]
        )
        products *= int(np.sum((offset == 0) & (index >= 0) & (index < size)))
    return 2 * products
