"""Tiny checkpoints, as `save_pretrained` wrote them, with what their classes return."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import config as configs
from reslab.core.taps import TAPS
from reslab.observe.watch import by_site, tapped, watching_sublayers
from reslab.train import loop
from reslab.train.loading import load

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens" / "interop"
FIRST = ("gpt2", "llama", "qwen3", "olmo2", "olmo3", "gemma2", "gemma3", "nanochat")
SECOND = ("qwen3_next", "deepseek_v3", "kimi_linear", "lfm2", "mamba", "mamba2")
SECOND += ("recurrent_gemma", "olmo_hybrid")
FAMILIES = FIRST + SECOND
EXACT = {"precision.compute": "float32"}
ONE = {"fsdp": 1}


@functools.cache
def golden(name):
    with np.load(GOLDENS / name / "golden.npz") as archive:
        return dict(archive.items())


@functools.cache
def loaded(name):
    return load(GOLDENS / name, mesh=ONE)


def copied(name, folder, **changes):
    """A checkpoint with other fields in its config, or without those that are None."""
    shutil.copytree(GOLDENS / name, folder, ignore=shutil.ignore_patterns("*.npz"))
    change_config(folder, **changes)
    return folder


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def logits(found, tokens):
    with jax.default_matmul_precision("highest"):
        return jax.jit(found.model.apply)(found.variables, tokens)


def observed(loaded, tokens):
    """Logits, and the stream before every sublayer and at the end."""

    def run(variables, tokens):
        with watching_sublayers():
            found, taps = loaded.model.apply(variables, tokens, mutable=[TAPS])
        seen = tapped(taps[TAPS])
        readings = by_site("reading", seen["reading"])
        return found, jnp.concatenate([readings, by_site("end", seen["end"])[-1:]])

    with jax.default_matmul_precision("highest"):
        return jax.jit(run)(loaded.variables, tokens)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="session")
def small_config_run(tmp_path_factory):
    """A run of reslab's own, of one step."""
    return own_run(tmp_path_factory.mktemp("own") / "run")


def own_run(directory, **fields):
    small = str(pathlib.Path(__file__).parent.parent / "small.py")
    config = configs.load(small)
    changes = {"train.steps": 1, "optim.schedule": "constant", **fields}
    loop.train(configs.update(config, changes.items()), directory)
    return directory
