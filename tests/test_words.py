"""Docstrings and messages are in plain technical English."""

import ast
import pathlib
import re

import pytest

import reslab

ROOT = pathlib.Path(reslab.__file__).parent
FIRST = re.compile(
    r"(What|Whether|Who|Where|How|Of|Those|Such|None|Nobody|That|All|Both|By|It|Its)\b"
)
ANYWHERE = re.compile(
    r"\b(anew|so many|as many as|of which|that of|all else|by itself|a look"
    r"|what is left|who|whoever|nobody|no one|somebody|someone|goes? on|going on"
    r"|(?-i:(?:is|are) none))\b",
    re.IGNORECASE,
)


def documented(tree):
    """The first statement of every module, class and function with a docstring."""
    for node in ast.walk(tree):
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if is_documented and ast.get_docstring(node) is not None:
            yield node.body[0].value


def texts(path):
    """Yields docstrings, then all other texts of a file, with their lines."""
    tree = ast.parse(path.read_text())
    docstrings = {*documented(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node in docstrings, node.lineno, node.value


@pytest.mark.parametrize("folder", sorted({p.parent for p in ROOT.rglob("*.py")}))
def test_plain_english(folder):
    found = []
    for path in sorted(folder.glob("*.py")):
        for is_docstring, line, text in texts(path):
            if is_docstring and FIRST.match(text):
                found.append(f"{path.name}:{line}: {text.partition(chr(10))[0]}")
            words = " ".join(text.split())
            found += [
                f"{path.name}:{line}: ...{words[max(0, m.start() - 30) : m.end() + 30]}"
                for m in ANYWHERE.finditer(words)
            ]
    assert not found, "\n".join(found)
