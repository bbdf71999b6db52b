"""Strict by default: eight fake devices, no silent promotion, warnings are errors."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's collectives need more threads than devices, or they wait for ever.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
# Tests compile the same small programs again and again, in several processes.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "programs"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Most programs here are too small to be worth optimizing; see `optimized`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import contextlib
import gc
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from reslab.parallel.aot.program import without_cache


def known_flags(*flags):
    """The flags that this XLA knows: it ends its process at any other."""
    start = "from jaxlib import xla_client; xla_client.make_cpu_client()"

    def is_known(text):
        command = [sys.executable, "-c", start]
        environment = os.environ | {"XLA_FLAGS": text}
        return not subprocess.run(
            command, env=environment, capture_output=True
        ).returncode

    # Workers of a run need not ask again.
    if KNOWN not in os.environ:
        every = " ".join(flags)
        os.environ[KNOWN] = (
            every if is_known(every) else " ".join(filter(is_known, flags))
        )
    return os.environ[KNOWN]


KNOWN = "RESLAB_TESTS_KNOWN_FLAGS"
# Newer emitters of fused loops take more than twice as long to compile, and programs in
# several parts a third longer. Flags are read once, here: libtpu reads them later,
# and ends at one that it does not know.
FLAGS = os.environ["XLA_FLAGS"]
QUICK = known_flags(
    "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{FLAGS} {QUICK}"
jax.devices()
os.environ["XLA_FLAGS"] = FLAGS

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A job in the background of a shell ignores interrupts, as do its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDENS = pathlib.Path(__file__).parent / "goldens"


def pytest_collection_finish():
    # Tracing makes many objects that live on: looking for garbage takes a tenth of it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def pytest_addoption(parser):
    parser.addoption(
        "--rotate",
        metavar="COMMIT",
        help="with -m conformance: also exhaustive tests that this commit chooses, and "
        "all of the variants that it or the commits of the day before changed",
    )


@pytest.fixture(scope="session")
def shell():
    """The environment of a shell, for processes on one device that compile quickly."""
    return os.environ | {"XLA_FLAGS": QUICK}


@pytest.fixture
def golden():
    """Loads arrays of the authors' implementations, floats as float64."""

    def load(name):
        with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as archive:
            return {
                key: value.astype(np.float64) if value.dtype.kind == "f" else value
                for key, value in archive.items()
            }

    return load


@pytest.fixture(autouse=True)
def optimized(request):
    """Compiles as outside of tests where a test looks at the compiled program."""
    names = ("optimized", "tpu_compile")
    if not any(request.node.get_closest_marker(name) for name in names):
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    # A program for an absent TPU cannot be read back from a cache of programs.
    is_for_tpu = request.node.get_closest_marker("tpu_compile")
    with without_cache() if is_for_tpu else contextlib.nullcontext():
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Drops what a module has compiled; else a run ends with gigabytes of it."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision inside the test."""
    with jax.enable_x64(True):
        yield
