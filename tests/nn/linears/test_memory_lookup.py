import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, unbox
from reslab.nn.linears.memory_lookup import MemoryLookup, hash_codes


@pytest.mark.parametrize("case", ["dev"])
@pytest.mark.parametrize("form", ["slice", "proj"])
def test_golden(golden_set, assert_golden, case, form):
    data = golden_set("memoryformer", f"{case}_{form}_")
    tables = data["code"].shape[-1]
    bits = data["x"].shape[-1] // tables

    def parameters(prefix):
        params = {
            "tables": data[f"{prefix}tables"].reshape(tables, 2**bits, -1),
            "bias": data[f"{prefix}bias"],
        }
        if form == "proj":
            params["hash"] = {
                "kernel": data[f"{prefix}hash_projection_weight"].T,
                "bias": data[f"{prefix}hash_projection_bias"],
            }
        return params

    lookup = MemoryLookup(
        data["out"].shape[-1], use_bias=True, bits=bits, use_projection=form == "proj"
    )
    assert_golden(lookup, data, parameters)


@pytest.mark.parametrize("case", ["dev"])
def test_codes_and_scores_are_the_authors_own(golden_set, case, x64):
    data = golden_set("memoryformer", f"{case}_slice_")
    tables = data["code"].shape[-1]
    codes, scores = hash_codes(jnp.asarray(data["x"].reshape(-1, tables, 4)))
    np.testing.assert_array_equal(codes, data["code"])
    np.testing.assert_allclose(scores, data["score"], rtol=1e-10)
    assert np.all((codes >= 0) & (codes < 16))
    larger, _ = hash_codes(jnp.asarray(3.0 * data["x"].reshape(-1, tables, 4)))
    np.testing.assert_array_equal(larger, codes)


def test_multiplies_by_no_kernel():
    lookup, x = MemoryLookup(6, bits=4), jnp.zeros((2, 3, 8))
    names = named_leaves(unbox(jax.eval_shape(lookup.init, jax.random.key(0), x)))
    assert {name: leaf.shape for name, leaf in names.items()} == {
        "params/tables": (2, 16, 6)
    }
    assert "dot_general" not in str(jax.make_jaxpr(lookup.init)(jax.random.key(0), x))


def test_keeps_no_rows_for_the_backward_pass():
    lookup, x = MemoryLookup(32, bits=2), jnp.ones((2, 3, 8))
    params = lookup.init(jax.random.key(0), x)
    _, transpose = jax.vjp(lambda p, x: jnp.sum(lookup.apply(p, x)), params, x)
    rows = 4 * 2 * 3 * 32
    assert all(leaf.size < rows for leaf in jax.tree.leaves(transpose))


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (17, r"bits: expected between 1 and 16 \(a table has 2\^bits rows\); got 17"),
        (0, "bits: expected between 1 and 16"),
        (3, "bits: expected a divisor of the 8 inputs; got 3"),
    ],
)
def test_refuses_tables_that_do_not_fit(bits, message):
    with pytest.raises(ReslabError, match=message):
        MemoryLookup(6, bits=bits).init(jax.random.key(0), jnp.zeros((2, 8)))
