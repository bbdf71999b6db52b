import os
import subprocess
import sys

import pytest

from reslab.core.errors import ReslabError
from reslab.optim.soap import build


@pytest.mark.parametrize(
    "tag, kernels, options",
    [
        ("freq1", ("w2",), {"every": 1}),
        ("freq2", ("w2",), {"every": 2}),
        ("freq2_onesided_max12", ("w", "w2"), {"every": 2, "largest": 12}),
    ],
)
def test_is_the_authors(replay, turned, tag, kernels, options):
    made = build(3e-3, 0.01, turned(kernels, ("b",)), **options)
    replay("soap", tag, made, leaves=(*kernels, "b"), steps=6, atol=1e-5)


def test_mistakes():
    with pytest.raises(ReslabError, match="every: expected at least 1; got 0"):
        build(0.1, every=0)


@pytest.mark.exhaustive  # Half a minute.
def test_decompositions_of_many_stacks_end_on_two_threads():
    code = """
import jax
from reslab.optim.soap import _orthonormal


keys = jax.random.split(jax.random.key(0), 6)
stacks = [jax.random.normal(key, (6, 256, 256)) for key in keys]
found = jax.jit(lambda stacks: [_orthonormal(x) @ x for x in stacks])
for _ in range(20):
    jax.block_until_ready(found(stacks))
"""
    alone = os.environ | {"NPROC": "2", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=alone, check=True, timeout=120)
