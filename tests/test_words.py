"""First lines of docstrings name the thing or begin with a verb."""

import ast
import pathlib
import re

import pytest

import reslab

ROOT = pathlib.Path(reslab.__file__).parent
BANNED = re.compile(r"(What|Whether|Who|Where|How|Of|Those|Such|None|Nobody|That)\b")


@pytest.mark.parametrize("folder", sorted({p.parent for p in ROOT.rglob("*.py")}))
def test_first_lines(folder):
    found = []
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                line = (ast.get_docstring(node) or "").partition("\n")[0]
                if BANNED.match(line):
                    found.append(f"{path.name}:{getattr(node, 'lineno', 1)}: {line}")
    assert not found
