"""`reslab bench generate`: states, rows, and what it refuses."""

import csv
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.cli import main
from reslab.commands import decoding

TABLE = pathlib.Path(__file__).parents[1] / "experiments/bench/generate.csv"
RECURRENT = ("gated_delta", "kda", "mamba2", "retention")
GROWING = ("attention", "latent_attention", "recurrent_transformer")


@pytest.mark.parametrize("name", decoding.MIXERS)
def test_the_state_of_a_recurrent_mixer_does_not_grow(name):
    model = decoding.model_of(name, "float32")
    short, long = (decoding.state_bytes(model, context) for context in (1024, 16384))
    if name in GROWING:
        assert 15.9 * short < long < 16.1 * short
    else:
        assert name in (*RECURRENT, "windowed_attention") and long == short


@pytest.mark.parametrize("name", ["attention", "windowed_attention", "mamba2"])
def test_a_context_that_was_not_read_is_shaped_like_one_that_was(name, monkeypatch):
    monkeypatch.setattr(decoding, "WIDTH", 32)
    monkeypatch.setattr(decoding, "DEPTH", 1)
    model = decoding.model_of(name, "float32")
    tokens = jnp.zeros((1, 5), jnp.int32)

    @jax.jit
    def read():
        variables = model.init(jax.random.key(0), tokens)
        given = {"state": model.init_state(1, 9), "method": "hidden"}
        return model.apply(variables, tokens, **given)[1]

    def described(state):
        def leaf(x):
            is_count = jnp.issubdtype(x.dtype, jnp.integer)
            return x.shape, x.dtype, np.asarray(x).tolist() if is_count else None

        return jax.tree.map(leaf, state)

    assert described(decoding.started(model, 5, 4)) == described(read())


@pytest.mark.conformance
def test_rows_of_what_ran_here(capsys, monkeypatch):
    for name, value in {"WIDTH": 16, "DEPTH": 1, "TOKENS": 2, "CALLS": 2}.items():
        monkeypatch.setattr(decoding, name, value)
    mixers = ["--mixer", "attention", "--mixer", "short_convolution"]
    contexts = ["--context", "9", "--context", "5"]
    assert main(["bench", "generate", *mixers, *contexts]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    got = [(row["mixer"], row["context"]) for row in rows]
    names = "attention", "short_convolution"
    assert got == [(name, context) for context in ("5", "9") for name in names]
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)
    assert [row["state_bytes"] for row in rows][1] == rows[3]["state_bytes"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--mixer", "atention"], "attention"),
        (["--mixer", "gru(is_bidirectional=True)"], "causal"),
        (["--context", "0"], "expected 1 to"),
        (["--dtype", "int8"], "bfloat16 or float32"),
        (["--target", "v5e"], "reslab bench ops"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert main(["bench", "generate", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said


def test_the_recorded_rows_are_of_one_run_and_say_what_is_promised():
    with TABLE.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["mixer"] for row in table} == set(decoding.MIXERS)
    assert {int(row["context"]) for row in table} == set(decoding.CONTEXTS)
    assert len({row["commit"] for row in table}) == 1
    for row in table:
        model = decoding.model_of(row["mixer"], row["dtype"])
        assert int(row["state_bytes"]) == decoding.state_bytes(
            model, int(row["context"])
        )
        if row["mixer"] in RECURRENT:
            assert 0.8 < float(row["slowdown"]) < 1.25
