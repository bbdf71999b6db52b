import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.linears.chain import ChainLinear
from reslab.nn.linears.dense import Dense


@pytest.mark.parametrize("case", ["dev"])
def test_golden(golden_set, assert_golden, case):
    data = golden_set("colm_from_equations", f"{case}_chainlinear_")
    config = json.loads(str(golden_set("colm_from_equations", f"{case}_")["cfg"]))
    chains = tuple(config["chains"])
    outputs, inputs = data["p_W"].shape
    ends = np.cumsum([0, *chains])

    def parameters(prefix):
        weight, bias = data[f"{prefix}W"], data[f"{prefix}b"]

        def chain(i):
            rows = slice(*(ends[i : i + 2] * outputs // sum(chains)))
            columns = ends[i + 1] * inputs // sum(chains)
            return {"kernel": weight[rows, :columns].T, "bias": bias[rows]}

        return {f"chain_{i}": chain(i) for i in range(len(chains))}

    assert_golden(ChainLinear(outputs, use_bias=True, chains=chains), data, parameters)


def test_one_chain_is_dense():
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    chain = ChainLinear(6, chains=(2,))
    params = unbox(chain.init(jax.random.key(0), x))["params"]
    dense = Dense(6).apply({"params": params["chain_0"]}, x)
    np.testing.assert_array_equal(chain.apply({"params": params}, x), dense)


def test_a_chain_sees_only_those_before_it():
    x = jax.random.normal(jax.random.key(1), (5, 8))
    chain = ChainLinear((4, 3), ("embed", "heads", "head_dim"), chains=(1, 1, 2))
    variables = chain.init(jax.random.key(0), x)
    y = chain.apply(variables, x)
    changed = chain.apply(variables, x.at[:, 2:4].add(1.0)) != y
    np.testing.assert_array_equal(
        np.any(changed, axis=(0, 2)), [False, True, True, True]
    )


def test_shared_keys_read_the_first_chain():
    x = jax.random.normal(jax.random.key(1), (5, 8))

    def reads(role):
        chain = ChainLinear(6, chains=(1, 1), is_kv_shared=True, role=role)
        variables = chain.init(jax.random.key(0), x)
        y = chain.apply(variables, x)
        later = chain.apply(variables, x.at[:, 4:].add(1.0))
        return bool(np.any(later != y))

    assert [reads(role) for role in ("query", "key", "value")] == [True, False, False]


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        ((), "chains: expected positive integers"),
        ((1, 0), "chains: expected at least 1; got 0"),
        ((1, 2), r"whose sum divides the width \(8\); got \(1, 2\), which sum to 3"),
        ((2, 2), r"whose sum divides the width \(6\)"),
    ],
)
def test_refuses_chains_that_do_not_divide_the_width(chains, message):
    with pytest.raises(ReslabError, match=message):
        ChainLinear(6, chains=chains).init(jax.random.key(0), jnp.zeros((2, 8)))
