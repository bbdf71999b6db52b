"""Files and functions stay short, and what begins with `_` stays in its folder."""

import ast
import pathlib

import pytest

import reslab

ROOT = pathlib.Path(reslab.__file__).parent
LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 80  # Without its docstring.

LONG_FILES = {
    "train/checkpoint.py": "one class: all that knows Orbax",
    "train/loop.py": "one class: the order of everything around a step",
    "core/registry.py": "spec strings, from text to object",
    "ops/depth_attention/pallas_tpu.py": "one kernel, forward and backward",
}
LONG_FUNCTIONS = {
    "nn/stacks/_loops/append_only.py: append_only_scan": (
        "a loop and its backward pass"
    ),
    "ops/depth_attention/mix_tpu.py: backward": "one kernel",
    "ops/depth_attention/pallas_tpu.py: forward": "one kernel",
    "ops/depth_attention/pallas_tpu.py: backward": "one kernel",
    "ops/depth_attention/pallas_tpu.py: body": "one kernel",
    "optim/soap.py: scale_by_soap": "`init` and `update` of one method",
}
# Files that use another folder's private modules.
LISTED = {"train/probe.py": "measures probes outside of the folder that lists them"}

FILES = sorted(ROOT.rglob("*.py"))


def name(path):
    return str(path.relative_to(ROOT))


def length(node):
    """Lines of a function without those of its docstring."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    if name(path) not in LONG_FILES:
        assert len(text.splitlines()) <= LINES_OF_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            is_listed = f"{name(path)}: {node.name}" in LONG_FUNCTIONS
            assert length(node) <= LINES_OF_A_FUNCTION or is_listed, node.name


def test_only_long_ones_are_listed():
    sizes = {name(path): len(path.read_text().splitlines()) for path in FILES}
    assert all(sizes[listed] > LINES_OF_A_FILE for listed in LONG_FILES)
    long = {
        f"{name(path)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if length(node) > LINES_OF_A_FUNCTION
    }
    assert LONG_FUNCTIONS.keys() <= long


@pytest.mark.parametrize("path", FILES, ids=name)
def test_private_modules_stay_in_their_folder(path):
    here = ("reslab", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            parts = (*node.module.split("."), alias.name)
            for index, part in enumerate(parts):
                if parts[0] != "reslab" or not part.startswith("_"):
                    continue
                if name(path) not in LISTED:
                    assert parts[:index] == here[:index], f"{node.module}.{alias.name}"


RESIDUALS = sorted((ROOT / "nn" / "residuals").glob("[!_]*.py"))


@pytest.mark.parametrize("path", RESIDUALS, ids=name)
def test_the_equation_of_a_residual_is_short(path):
    """Machinery around it, such as tables and kernels, has files of its own."""
    classes = [
        n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)
    ]
    for node in classes:
        documented = [f for f in node.body if isinstance(f, ast.FunctionDef)]
        docstrings = sum(f.end_lineno - f.lineno + 1 - length(f) for f in documented)
        assert length(node) - docstrings <= LINES_OF_A_FUNCTION, node.name


def test_processes_are_started_in_one_place():
    # It keeps the working directory from being imported.
    assert [name(p) for p in FILES if "sys.executable" in p.read_text()] == [
        "runtime/python.py"
    ]
