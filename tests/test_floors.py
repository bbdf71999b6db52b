"""A file imports only from lower floors, and no more than its user needs."""

import ast
import pathlib
import subprocess
import sys

import pytest

import reslab

ROOT = pathlib.Path(reslab.__file__).parent
FAMILIES = ("norms", "placements", "residuals", "mixers", "ffns", "linears")
FAMILIES += ("positions", "value_paths", "blocks", "stacks")

BELOW_TRAIN = ("core", "runtime", "ops", "models", "optim", "data", "parallel")
BELOW_TRAIN += ("observe",)

# What each floor may import besides itself.
ALLOWED = {
    "core": set(),
    "runtime": {"core"},
    "ops": {"core"},
    "nn.base": {"core", "ops"},
    **{f"nn.{family}": {"core", "ops", "nn.base"} for family in FAMILIES},
    "models": {"core", "ops", "nn.base", *(f"nn.{family}" for family in FAMILIES)},
    "optim": {"core", "ops"},
    "data": {"core", "runtime"},
    "parallel": {"core", "runtime"},
    "observe": {"core", "runtime", "ops"},
    "transforms": {"core", "nn.base"},
    # Tables and files: it knows the names of parts, not the parts.
    "interop": {"core", "runtime"},
    "train": {*BELOW_TRAIN, "transforms", "interop"},
    "study": {*BELOW_TRAIN, "train"},
    "drill": {"core", "runtime", "data", "parallel", "train"},
    "commands": {*BELOW_TRAIN, "train", "study", "drill"},
    # `reslab.load`, when it is asked for.
    "top": {"core", "runtime", "commands", "train"},
}


def floor(module):
    """The floor of a module path such as `reslab.nn.norms.rms`."""
    parts = module.split(".")[1:]
    if not parts:
        return None  # The package itself, which imports nothing.
    if parts[0] == "nn":
        is_family = len(parts) > 1 and parts[1] in FAMILIES
        return f"nn.{parts[1]}" if is_family else "nn.base"
    is_folder = (ROOT / parts[0]).is_dir()
    return parts[0] if is_folder else "top"


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write the whole module name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(p for p in ROOT.rglob("*.py") if "configs" not in p.parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_lower_floors(path):
    here = floor(".".join(("reslab", *path.relative_to(ROOT).with_suffix("").parts)))
    for name in imports(path):
        if name.split(".")[0] == "reslab":
            there = floor(name.removesuffix(".__init__"))
            assert there in (None, here) or there in ALLOWED[here], name


def test_every_floor_is_known():
    found = {floor(".".join(("reslab", *p.relative_to(ROOT).parts))) for p in FILES}
    assert found <= ALLOWED.keys() | {None}


HEAVY = ("tensorflow", "tensorflow_datasets", "orbax", "grain", "torch", "wandb")
HEAVY += ("ml_collections", "optax", "tensorboardX", "tokenizers")


@pytest.mark.parametrize(
    "module, allowed",
    [
        ("reslab", ()),
        ("reslab.nn.norms.rms", ()),
        ("reslab.nn.mixers.attention", ()),
        ("reslab.nn.residuals.hyper", ()),
        ("reslab.optim.adamw", ("optax",)),
    ],
)
def test_a_part_alone_pulls_in_nothing_heavy(module, allowed):
    # flax itself imports optax and orbax where they are installed; they count
    # only when importing flax alone would not have brought them.
    code = (
        "import sys, flax.linen; before = set(sys.modules); "
        f"import {module}; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not (set(done.stdout.split()) & set(HEAVY)) - set(allowed)


def test_importing_reslab_imports_nothing_else():
    code = "import sys; import reslab; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"jax", "flax", "numpy"} & set(done.stdout.split())
