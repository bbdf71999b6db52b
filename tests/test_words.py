"""Docstrings, comments and messages are in plain technical English."""

import ast
import pathlib
import re
import tokenize

import pytest

import reslab

ROOT = pathlib.Path(reslab.__file__).parent
FIRST = re.compile(
    r"(What|Whether|Who|Where|How|Of|Those|Such|None|Nobody|That|All|Both|By|It|Its)\b"
)
FIRST_OF_COMMENT = re.compile(r"(What|Who|Of|Those|Such|Or else)\b")
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


def comments(path):
    """Yields the comments of a file; lines that follow each other are one."""
    last, text = 0, ""
    with open(path, "rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type != tokenize.COMMENT:
                continue
            line, words = token.start[0], token.string.lstrip("# ")
            if line != last + 1 and text:
                yield last, text
                text = ""
            last, text = line, f"{text} {words}".lstrip()
    if text:
        yield last, text


@pytest.mark.parametrize("folder", sorted({p.parent for p in ROOT.rglob("*.py")}))
def test_comments_are_plain_english(folder):
    found = [
        f"{path.name}:{line}: {text}"
        for path in sorted(folder.glob("*.py"))
        for line, text in comments(path)
        if FIRST_OF_COMMENT.match(text) or ANYWHERE.search(text)
    ]
    assert not found, "\n".join(found)
