"""Directories of safetensors: read tensor by tensor, written shard by shard.

Nothing is read that could be code: no pickle, no module of the checkpoint.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from reslab.core.errors import ReslabError, missing_extra
from reslab.core.records import read_record
from reslab.interop.base.tensors import Shape
from reslab.runtime.storage import local_path

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# Digests of the files of an export, which an import compares.
SEAL = "reslab.json"
# Bytes of a file, as `save_pretrained` divides them.
LARGEST_SHARD = 5 * 10**9
DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
      path: The file.
      dtype: Its dtype, as the file calls it.
      shape: Its shape.
    """

    path: pathlib.Path
    dtype: str
    shape: Shape


class Source:
    """A directory with a `config.json` and safetensors.

    Args:
      directory: The directory.

    Attributes:
      directory: The directory.
      config: Content of its `config.json`.
      tensors: What is stored, by name.

    Raises:
      ReslabError: If there is no such directory, or a file is missing, damaged, or
        a link out of it.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = local_path(directory, "checkpoint directory")
        if self.directory.is_file() and self.directory.suffix in _PICKLES:
            self._refuse_pickle(f"{self.directory}")
        if not self.directory.is_dir():
            raise ReslabError(
                f"{self.directory}",
                expected="a directory with config.json and *.safetensors",
                got="nothing there" if not self.directory.exists() else "a file",
            )
        self.config = read_record(self.inside("config.json"))
        self._check_seal()
        self.tensors = self._stored()

    def inside(self, name: str) -> pathlib.Path:
        """The path of a file of the directory.

        Raises:
          ReslabError: If it is missing, or a link leads out of the directory.
        """
        path = self.directory / name
        if pathlib.PurePath(name).name != name:
            raise ReslabError(
                f"{self.directory}: {name}", expected="a file of the directory"
            )
        if not path.exists() and not path.is_symlink():
            raise ReslabError(f"{self.directory} has no {name}")
        if not path.exists():  # A link to nothing, or to itself.
            raise ReslabError(f"{path}", expected="a file", got="a broken link")
        if not path.resolve().is_relative_to(self.directory.resolve()):
            raise ReslabError(
                f"{path} is a link out of the directory",
                expected="the file itself",
                hint="copy the files, as `hf download --local-dir` does",
            )
        if not path.is_file():
            raise ReslabError(f"{path}", expected="a file")
        return path

    def has(self, name: str) -> bool:
        """Returns whether the directory has a file of that name."""
        return (self.directory / name).exists() or (self.directory / name).is_symlink()

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor; nothing else of its file is read.

        Raises:
          ReslabError: If the file cannot be read.
        """
        stored = self.tensors[name]
        with _opened(stored.path) as file:
            return file.get_tensor(name)

    def digests(self) -> dict[str, str]:
        """The sha256 of every file of tensors, by name; reads all of them."""
        paths = {one.path for one in self.tensors.values()}
        return {path.name: _sha256(path) for path in sorted(paths)}

    def _check_seal(self) -> None:
        if not self.has(SEAL):
            return
        sealed = read_record(self.inside(SEAL), {"files": {...: str}})
        for name, sha256 in sealed.get("files", {}).items():
            now = _sha256(self.inside(name))
            if now != sha256:
                raise ReslabError(
                    f"{self.directory / name} was changed since it was exported",
                    expected=f"sha256 {sha256[:12]}",
                    got=now[:12],
                    hint=f"export it again, or remove {SEAL}",
                )

    def _refuse_pickle(self, what: str) -> NoReturn:
        raise ReslabError(
            what,
            expected="*.safetensors: other formats may run code when read",
            hint="load it where you trust it, and save_pretrained(...)",
        )

    def _stored(self) -> dict[str, Stored]:
        if self.has(INDEX):
            return self._indexed()
        files = sorted(path.name for path in self.directory.glob("*.safetensors"))
        if SINGLE in files:
            files = [SINGLE]
        if not files:
            pickles = (p for p in self.directory.iterdir() if p.suffix in _PICKLES)
            if names := sorted(path.name for path in pickles):
                what = f"{self.directory} holds {names[0]} and no safetensors"
                self._refuse_pickle(what)
            raise ReslabError(f"{self.directory} has no *.safetensors")
        found: dict[str, Stored] = {}
        for name in files:
            for key, one in _header(self.inside(name)).items():
                if key in found:
                    raise ReslabError(
                        f"{self.directory}: tensor {key} is in {found[key].path.name} "
                        f"and in {name}",
                        hint=f"a {INDEX}",
                    )
                found[key] = one
        return found

    def _indexed(self) -> dict[str, Stored]:
        index = read_record(self.inside(INDEX), {"weight_map": {...: str}})
        where = index.get("weight_map")
        if not where:
            raise ReslabError(f"{self.directory / INDEX} has no weight_map")
        headers = {
            name: _header(self.inside(name)) for name in sorted(set(where.values()))
        }
        for key, name in where.items():
            if key not in headers[name]:
                raise ReslabError(
                    f"{self.directory / name} has no tensor {key}",
                    expected=f"what {INDEX} names",
                )
        for name, header in headers.items():
            for key in header:
                if where.get(key) != name:
                    raise ReslabError(
                        f"{self.directory / name}: tensor {key} is not of this file",
                        expected=f"what {INDEX} names",
                    )
        return {key: headers[name][key] for key, name in where.items()}


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    """Opens a file of tensors; its errors are told in one line."""
    try:
        import safetensors
    except ImportError:
        raise missing_extra("safetensors", "hf") from None
    try:
        # Reads what is asked for. A mapped file would stay in memory once read.
        with safetensors.safe_open(path, framework="numpy", backend="pread") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise ReslabError(
            f"{path}", expected="an intact safetensors file", got=str(error)
        ) from None


def _header(path: pathlib.Path) -> dict[str, Stored]:
    found = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            one = file.get_slice(name)
            found[name] = Stored(path, one.get_dtype(), tuple(one.get_shape()))
    return found


@dataclasses.dataclass(frozen=True)
class Written:
    """A tensor to write.

    Attributes:
      name: Its name.
      dtype: Its dtype.
      shape: Its shape.
      make: Makes it.
    """

    name: str
    dtype: np.dtype
    shape: Shape
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Returns its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    directory: pathlib.Path, tensors: Iterable[Written], largest: int = LARGEST_SHARD
) -> dict[str, str]:
    """Writes tensors in as many files as it takes, one tensor in memory at a time.

    Args:
      directory: Where to write.
      tensors: What to write, in order.
      largest: Bytes of a file, which a single larger tensor exceeds.

    Returns:
      The sha256 of every file, by name.
    """
    shards: list[list[Written]] = [[]]
    for one in tensors:
        if shards[-1] and sum(t.size for t in shards[-1]) + one.size > largest:
            shards.append([])
        shards[-1].append(one)
    count = len(shards)
    digests, where = {}, {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        digests[name] = _write_file(directory / name, shard)
        where |= dict.fromkeys((one.name for one in shard), name)
    if count > 1:
        total = sum(one.size for shard in shards for one in shard)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        digests[INDEX] = write_json(directory / INDEX, index)
    return digests


def _write_file(path: pathlib.Path, tensors: Sequence[Written]) -> str:
    """Writes a file: the length of the header, the header, and the tensors' bytes."""
    # The order of the library, wide dtypes first: equal tensors are equal files.
    tensors = sorted(tensors, key=lambda one: (-one.dtype.itemsize, one.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for one in tensors:
        header[one.name] = {
            "dtype": _NAMES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [begin, begin + one.size],
        }
        begin += one.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:

        def put(part: Any) -> None:
            digest.update(part)
            file.write(part)

        put(len(text).to_bytes(8, "little"))
        put(text)
        for one in tensors:
            array = np.ascontiguousarray(one.make(), one.dtype)
            assert array.shape == one.shape, one.name
            put(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> str:
    """Writes a JSON file as `save_pretrained` does, and returns its sha256."""
    return write_bytes(
        path, f"{json.dumps(content, indent=2, sort_keys=True)}\n".encode()
    )


def write_bytes(path: pathlib.Path, content: bytes) -> str:
    """Writes a file, and returns its sha256."""
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
