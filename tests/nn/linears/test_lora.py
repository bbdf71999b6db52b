"""LoRA in a loop, against the recorded chain of another's code."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core import registry
from reslab.core.trees import unbox

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"


def test_a_chain_of_passes_is_the_recorded_one(x64):
    with np.load(GOLDENS / "relaxed_recursive.npz") as stored:
        file = {k.removeprefix("dev_"): stored[k] for k in stored}
    unique, rank = int(file["block_len_K"]), int(file["rank"])
    linear = registry.make(
        *("linears", f"lora(rank={rank})"),
        **{"features": 8, "depths": 2, "dtype": jnp.float64},
        param_dtype=jnp.float64,
    )

    def parameters(kind):
        def factor(letter, index):
            rows = [f"{kind}_lora_{letter}_q_{index + t * unique}" for t in (0, 1)]
            return {"kernel": np.stack([file[row].T for row in rows])}

        return [
            {
                "kernel": file[f"{kind}_Wshared_q_{index}"].T,
                "pass_down": factor("A", index),
                "pass_up": factor("B", index),
            }
            for index in range(unique)
        ]

    def loss(layers, x):
        for depth in range(2 * unique):
            own = {"params": layers[depth % unique]}
            x = jnp.tanh(linear.apply(own, x, depth // unique))
        return jnp.sum(x * file["cot_chain"]), x

    (_, out), (slopes, slope) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        parameters("in"), file["in_x"]
    )
    np.testing.assert_allclose(out, file["out_chain"], rtol=1e-7)
    np.testing.assert_allclose(slope, file["grad_x"], rtol=1e-7)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
        slopes,
        parameters("grad"),
    )


def test_starts_as_dense_and_rank_zero_is_dense():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    dense = registry.make("linears", "dense", features=5)
    variables = dense.init(jax.random.key(0), x)
    wanted = dense.apply(variables, x)
    none = registry.make("linears", "lora(rank=0)", features=5)
    np.testing.assert_array_equal(none.apply(variables, x), wanted)
    some = registry.make("linears", "lora(rank=2, alpha=3.0)", features=5, depths=4)
    own = unbox(some.init(jax.random.key(0), x))["params"]
    assert own["pass_down"]["kernel"].shape == (4, 8, 2)
    own = {**own, **unbox(variables)["params"]}
    np.testing.assert_allclose(some.apply({"params": own}, x, 3), wanted, atol=1e-6)
    own["pass_up"] = {"kernel": np.ones((4, 2, 5), np.float32)}
    change = 1.5 * x @ own["pass_down"]["kernel"][3] @ np.ones((2, 5), np.float32)
    got = some.apply({"params": own}, x, 3)
    np.testing.assert_allclose(got, wanted + change, atol=1e-5)
