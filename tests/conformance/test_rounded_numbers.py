"""No variant multiplies bfloat16 arrays by numbers that are rounded to bfloat16.

JAX rounds a Python number, and a learned scale, to the dtype of what it meets. That
is seen in the traced program alone: arithmetic in bfloat16 one side of which is one
number, unless rounding cannot change it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.models._classifier import as_floats
from reslab.models.vit import VisionTransformer

KINDS = ("norm", "placement", "residual", "ffn", "mixer", "linear", "position", "block")
# With the number of heads that fits, and no norm that contains an activation.
SPECS = {
    "attention": "attention(heads=2, head_dim=6)",
    "gated_delta": "gated_delta(heads=2, head_dim=6)",
    "memory_lookup": "memory_lookup(bits=2)",
    "manhattan": "manhattan(heads=2)",
    "retention": "retention(heads=2)",
    "interleaved": "interleaved(heads=2)",
    "short_window": "short_window(short='attention(heads=2, window=4)')",
}
CASES = [
    (kind, SPECS.get(name, name))
    for kind in KINDS
    for name in registry.names(f"{kind}s")
    if not (kind == "norm" and name.startswith("evonorm"))
]
CASES += [("stack", SPECS.get(name, name)) for name in registry.names("stacks")]
CASES += [
    ("mixer", f"attention(heads=2, head_dim=6, value_path='{name}')")
    for name in registry.names("value_paths")
]
CASES += [
    ("block", "hourglass(lift=24)"),
    ("block", "macaron(step=0.3)"),
    ("mixer", "attention(heads=2, head_dim=6, softcap=30.0)"),
    ("mixer", "attention(heads=2, value_path=\"value_residual(form='constant')\")"),
    ("residual", "skip_init(start=0.3)"),
    ("residual", "hyper(streams=2, is_dynamic=True)"),
    ("residual", "delta_attnres(gate='scalar')"),
]
ARITHMETIC = ("mul", "div", "add", "sub", "pow", "max", "min")
# Hand on what they are given.
PASSING = ("broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "copy")


def rounded_numbers(closed):
    """The equations of a program that meet a number in bfloat16, rounded or not known.

    Args:
      closed: A closed jaxpr.

    Returns:
      The equations, as text.
    """
    found = []

    def is_exact(atom, primitive="add"):
        if not hasattr(atom, "val"):
            return False
        value = abs(float(atom.val))
        if primitive in ("mul", "div"):
            return value == 0 or np.frexp(value)[0] == 0.5
        return value == int(value) and value < 256

    def walk(jaxpr, numbers):
        numbers = set(numbers)
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            inner = [
                getattr(sub, "jaxpr", sub)
                for value in equation.params.values()
                for sub in (value if isinstance(value, tuple | list) else (value,))
                if hasattr(sub, "eqns") or hasattr(sub, "jaxpr")
            ]
            for sub in inner:
                ends = zip(
                    reversed(sub.invars), reversed(equation.invars), strict=False
                )
                walk(sub, {mine for mine, given in ends if is_number(given, numbers)})
            first = equation.invars[0] if equation.invars else None
            if name in PASSING and is_number(first, numbers) and not is_exact(first):
                numbers.update(equation.outvars)
            if name not in ARITHMETIC:
                continue
            output = equation.outvars[0].aval
            if output.dtype != jnp.bfloat16 or output.size == 1:
                continue
            for side in equation.invars:
                if is_number(side, numbers) and not is_exact(side, name):
                    where = jax.extend.source_info_util.summarize(equation.source_info)
                    found.append(f"{equation} at {where}")

    def is_number(atom, numbers):
        if hasattr(atom, "val"):
            return np.size(atom.val) == 1
        return atom in numbers or (
            atom.aval.size == 1 and jnp.issubdtype(atom.aval.dtype, jnp.floating)
        )

    walk(closed.jaxpr, ())
    return found


def is_bidirectional(spec):
    return getattr(registry.unbound("mixers", spec), "is_bidirectional", False)


@pytest.mark.parametrize("kind, spec", CASES)
def test_of_a_model(kind, spec, small_model, tokens):
    if kind == "mixer" and is_bidirectional(spec):
        fields = {"features": 12, "depth": 1, "dtype": jnp.bfloat16, kind: spec}
        model = VisionTransformer(**fields, is_unrolled=True)
        images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.uint8)
        run = jax.make_jaxpr(lambda key, images: model.init_with_output(key, images))
        assert not rounded_numbers(run(jax.random.key(0), images))
        return
    depth = 3 if kind in ("placement", "residual", "stack") else 1
    fields = {"features": 12, "depth": depth, "dtype": jnp.bfloat16, kind: spec}
    if spec == "reversible":
        fields |= {"residual": spec, "block": spec}
    model, tokens = small_model(**fields, is_unrolled=True), tokens[:2, :6]

    def run(key):
        segments = jnp.ones_like(tokens)
        return model.init_with_output(key, tokens, segments=segments)[0]

    assert not rounded_numbers(jax.make_jaxpr(run)(jax.random.key(0)))


def test_bytes_of_images_are_rounded_once():
    levels = jnp.arange(256, dtype=jnp.uint8)
    exact = (np.arange(256) / 127.5 - 1).astype(np.float32)
    found = as_floats(levels, jnp.bfloat16)
    error = np.abs(np.asarray(found, np.float32) - exact)
    assert np.all(error <= 2**-8 * np.abs(exact) / (1 + 2**-8) + 1e-7)


def test_the_search_finds_them():
    x = jnp.ones((2, 3), jnp.bfloat16)

    def count(function, *more):
        return len(rounded_numbers(jax.make_jaxpr(function)(x, *more)))

    scale = jnp.asarray(0.7)
    assert count(lambda x: 0.3 * x) == 1
    assert count(lambda x: 0.5 * x + 1) == 0
    assert count(lambda x, s: s.astype(x.dtype) * x, scale) == 1
    assert count(lambda x, s: (s * x.astype(s.dtype)).astype(x.dtype), scale) == 0
    assert count(jax.jit(lambda x, s: s * x), scale.astype(x.dtype)) == 1
    assert count(jax.nn.gelu) > 0
