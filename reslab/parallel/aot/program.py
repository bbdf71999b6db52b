"""Compiling for an absent TPU, and what the compiler says of the result."""

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from reslab.core.errors import ReslabError
from reslab.runtime.files import scratch_directory


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory that a program takes, by XLA's own count.

        peak = arguments + outputs - aliased + temporaries

    Attributes:
      arguments: What it is given.
      outputs: What it returns.
      aliased: Outputs that lie where a donated argument lay.
      temporaries: What it keeps meanwhile.
      code: The program itself, which lies beside the peak.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def peak(self) -> int:
        """The most that is in use at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that was compiled.

    Attributes:
      memory: What it takes.
      text: The compiled and scheduled program; None where it cannot be had.
      compile_seconds: How long this machine took to compile it.
      is_cached: Whether it was compiled by an earlier process.
    """

    memory: Memory
    text: str | None
    compile_seconds: float
    is_cached: bool = False


class OutOfMemory(Exception):
    """A program needs more memory than a device has.

    Attributes:
      needed: Bytes that it needs, as the compiler rounds them.
      available: Bytes that there are.
    """

    def __init__(self, needed: int, available: int):
        super().__init__(f"{needed} of {available} bytes")
        self.needed = needed
        self.available = available


def compile_program(lowered: Any, where: str = "") -> Program:
    """Compiles a lowered program, or finds what an earlier process has compiled.

    Nothing runs. JAX cannot read a program for an absent TPU back, so what the compiler
    said of it is kept in the folder of JAX's compilation cache, if there is one.

    Args:
      lowered: What `jax.jit(...).lower(...)` gave for devices of a topology.
      where: The topology and its mesh, which the program itself does not name; "" asks
        no cache.

    Returns:
      The program.

    Raises:
      OutOfMemory: If the compiler finds that it does not fit a device.
      ReslabError: If the compiler refuses it for another reason.
    """
    kept = _place_in_cache(lowered, where)
    if kept and (known := _read(kept)):
        return known
    with scratch_directory("reslab.compile-") as written:
        # jaxlib cannot parse every libtpu's program; libtpu can.
        options = {"xla_dump_to": str(written), "xla_dump_hlo_as_text": True}
        begin = time.perf_counter()
        try:
            with without_cache():
                compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if (exceeded := _exceeded(str(error))) is not None:
                raise exceeded from None
            message = str(error).splitlines()[0]
            raise ReslabError("the TPU compiler refuses it", got=message) from error
        seconds = time.perf_counter() - begin
        text = _text(compiled, written)
    stats = compiled.memory_analysis()
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    program = Program(memory, text, seconds)
    if kept:
        _keep(kept, program)
    return program


def _place_in_cache(lowered: Any, where: str) -> pathlib.Path | None:
    """The file that keeps what this compiler says of this program; None without."""
    settings: Any = jax.config
    folder = settings.jax_compilation_cache_dir
    if not (where and folder and settings.jax_enable_compilation_cache):
        return None
    versions = [importlib.metadata.version(name) for name in ("jaxlib", "libtpu")]
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    text = "\n".join([*versions, *flags, where, lowered.as_text()])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return pathlib.Path(folder) / f"reslab-{digest}.json.gz"


def _read(path: pathlib.Path) -> Program | None:
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        memory = Memory(**found["memory"])
        return Program(memory, found["text"], found["compile_seconds"], is_cached=True)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _keep(path: pathlib.Path, program: Program) -> None:
    """Keeps a program for later processes, where the folder can be written to."""
    body = gzip.compress(json.dumps(dataclasses.asdict(program)).encode())
    whole = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(body)
        whole.replace(path)


def _text(compiled: Any, written: pathlib.Path) -> str | None:
    """The program's text, from jaxlib, or as the compiler wrote it."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        found = sorted(written.glob("*.after_codegen.txt"))
        return found[-1].read_text() if found else None


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Compiles even what was compiled before, so that the time is true."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    jax.config.update(name, False)
    # JAX checks for a cache once, until it is reset.
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()


def _exceeded(message: str) -> OutOfMemory | None:
    """Reads the compiler's complaint; None where it is about something else.

    >>> _exceeded("Ran out of memory on HBM, the total (2.00G) exceeds (1.00G).").needed
    2147483648
    """
    if "Ran out of memory" not in message or "HBM" not in message.upper():
        return None
    unit = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    sizes = [
        int(float(number) * unit[prefix])
        for number, prefix in re.findall(r"\b(\d+\.\d+)([KMGT]?)\b", message)
    ]
    return OutOfMemory(*sizes[:2]) if len(sizes) >= 2 else None
