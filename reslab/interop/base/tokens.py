"""Tokenizer files beside a checkpoint."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.records import read_record
from reslab.interop.base.files import Source

TOKENIZER = "tokenizer.json"
# Files that a tokenizer may consist of, and what `generate` reads there.
FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def present(source: Source) -> list[str]:
    """The tokenizer files that a directory has.

    Raises:
      ReslabError: If one is damaged.
    """
    found = [name for name in FILES if source.has(name)]
    for name in found:
        path = source.inside(name)
        if path.suffix == ".json":
            read_record(path)
    ends(source.directory)
    return found


def tokenizer(source: Source, folder: pathlib.Path, vocabulary: int) -> str:
    """The spec of a checkpoint's tokenizer.

    Args:
      source: The checkpoint.
      folder: Where the files will be.
      vocabulary: Number of ids of the model.

    Returns:
      The tokenizer of `tokenizer.json`, or else `ids`.

    Raises:
      ReslabError: If a file is damaged.
    """
    config = source.config
    if not source.has(TOKENIZER):
        bos = _id(config.get("bos_token_id"), vocabulary)
        return registry.spec_text(
            "ids", {"size": vocabulary, **({} if bos is None else {"bos": bos})}
        )
    tokens = _tokens(read_record(source.inside(TOKENIZER)))
    settings = {}
    if source.has("tokenizer_config.json"):
        settings = read_record(source.inside("tokenizer_config.json"))
    named = [_content(settings.get(f"{end}_token")) for end in ("bos", "eos")]
    ids = [_id(config.get(f"{end}_token_id"), vocabulary) for end in ("bos", "eos")]
    by_id = [None if one is None else tokens.get(one) for one in ids]
    # A document of ours begins with one token: BOS where a model has it.
    begins = [by_id[0], named[0], by_id[1], named[1]]
    words = set(tokens.values())
    bos = next((one for one in begins if one in words), None)
    arguments: dict[str, Any] = {"path": str(folder / TOKENIZER), "size": vocabulary}
    if bos is not None:
        arguments["bos_token"] = bos
    return registry.spec_text("huggingface", arguments)


def ends(folder: pathlib.Path) -> frozenset[int]:
    """The tokens that end a sequence.

    Args:
      folder: Where `config.json` and `generation_config.json` are, if any are.

    Returns:
      Every id that one of them names as `eos_token_id`.

    Raises:
      ReslabError: If one is damaged, or names anything but ids.
    """
    found: frozenset[int] = frozenset()
    for path in (folder / "config.json", folder / "generation_config.json"):
        value = read_record(path).get("eos_token_id") if path.is_file() else None
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(one) is int for one in ids):
            raise ReslabError(
                f"{path}: eos_token_id", expected="token ids", got=json.dumps(value)
            )
        found |= frozenset(ids)
    return found


def _tokens(content: Mapping[str, Any]) -> dict[int, str]:
    """The special tokens, and those of the vocabulary, by id."""
    model = content.get("model")
    words = model.get("vocab") if isinstance(model, Mapping) else None
    found: dict[int, str] = {}
    if isinstance(words, Mapping):
        found = {index: word for word, index in words.items() if type(index) is int}
    for one in content.get("added_tokens") or ():
        if isinstance(one, Mapping) and type(one.get("id")) is int:
            found[one["id"]] = str(one.get("content"))
    return found


def _content(token: Any) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _id(value: Any, vocabulary: int) -> int | None:
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if value is None:
        return None
    if type(value) is not int:
        raise ReslabError(
            "config.json: bos_token_id", expected="a token id", got=json.dumps(value)
        )
    return value if 0 <= value < vocabulary else None
