"""A mistake in a part of one's own is one line that names the file and the line."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from reslab.cli import main
from reslab.core import extension

ROOT = pathlib.Path(__file__).parent.parent
SMALL = str(pathlib.Path(__file__).with_name("small.py"))
NORM = """import flax.linen as nn
import jax.numpy as jnp
class Own(nn.Module):
    def __call__(self, x):
        {body}
build = Own
"""
RESIDUAL = """import flax.linen as nn
import jax.numpy as jnp
class Own(nn.Module):
    reduces_to_plain_at_init = True
    def widen(self, x):
        return x
    def __call__(self, stream, branch, *, site):
        return {call}
    def narrow(self, stream):
        return {narrow}
build = Own
"""
OPTIMIZER = """import jax
import optax
def build(learning_rate):
    def init(params):
        return ()
    def update(gradients, state, params=None):
        {body}
    return optax.GradientTransformation(init, update)
"""


def norm(body):
    return "model.norm", NORM.format(body=body)


def residual(call="stream + branch(stream)", narrow="stream"):
    return "model.residual", RESIDUAL.format(call=call, narrow=narrow)


def optimizer(body):
    return "optim.name", OPTIMIZER.format(body=body)


# The field, the module, and words of the answer; "line" stands for the place.
WRONG = {
    "another dtype": (*norm("return x.astype(jnp.float32)"), "line 4", "float32(1, 2"),
    "another shape": (*norm("return x[..., :1]"), "line 4", "(1, 2, 1)"),
    "nothing returned": (*norm("pass"), "line 4", "got None"),
    "a name that is not there": (*norm("return y"), "line 5", "NameError"),
    "an attribute that is not there": (*norm("return x.wide"), "line 5", "Attribute"),
    "a wrong operation": (*norm("return x + 'a'"), "line 5", "TypeError"),
    "no __call__": (
        "model.norm",
        "import flax.linen as nn\nclass Own(nn.Module):\n    pass\nbuild = Own\n",
        "line 2",
        "Own without __call__",
    ),
    "no build": ("model.norm", "x = 1\n", "`build`"),
    "a build that returns nothing": (
        "model.norm",
        "def build():\n    pass\n",
        "line 1",
        "got None",
    ),
    "a build that raises": (
        "model.norm",
        "def build():\n    return 1 / 0\n",
        "line 2",
        "ZeroDivisionError",
    ),
    "a build with a wrong argument": (
        "model.norm",
        "def build(width):\n    return None\n",
        "line 1",
        "TypeError",
        "width",
    ),
    "a syntax error": ("model.norm", "def build(:\n", "line 1"),
    "an import that raises": ("model.norm", "import nothing_like_it\n", "line 1"),
    "a narrow of another width": (*residual(narrow="stream[..., :3]"), "line 9"),
    "a stream of another form": (*residual(call="(stream, stream)"), "line 7"),
    "a stream of another dtype": (
        *residual(call="(stream + branch(stream)).astype(jnp.float32)"),
        "line 7",
        "float32",
    ),
    "an update that raises": (*optimizer("return state.x, state"), "line 7", "'x'"),
    "an update of another tree": (
        *optimizer("return jax.tree.leaves(gradients), state"),
        "line 6",
        "a tree like the gradient",
    ),
    "an update of no state": (*optimizer("return gradients"), "line 6", "updates"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_in_parts_of_ones_own(mistake, tmp_path, monkeypatch, capsys):
    field, text, *expected = WRONG[mistake]
    name = f"own_{list(WRONG).index(mistake)}"
    package = tmp_path / f"lab_{name}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text(text)
    monkeypatch.setattr(extension, "_parts", {})  # Later tests have none of these.
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = sorted(tmp_path.iterdir())
    arguments = ["train", "--config", SMALL, "--run", "run"]
    arguments += [f"--set={field}=lab_{name}.part"]
    sets = ["precision.compute=bfloat16", "optim.groups=()"]
    code = main([*arguments, *(f"--set={text}" for text in sets)])
    _, err = capsys.readouterr()
    assert code == 2, err
    assert len(err.splitlines()) == 1, err
    for words in (f"lab_{name}", *expected):
        assert words in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.conformance
def test_the_example_moved_inside_passes_the_conformance_tests(tmp_path):
    text = (ROOT / "README.md").read_text()
    example = text[text.index("# lab/bounded.py") :]
    shutil.copytree(ROOT / "reslab", tmp_path / "reslab")
    inside = tmp_path / "reslab" / "nn" / "norms" / "bounded.py"
    inside.write_text(example[: example.index("```")])
    for name in ("configs", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tests)
    shutil.copytree(ROOT / "tests" / "conformance", tests / "conformance")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-m", "", "-k", "bounded"),
            *("-p", "no:cacheprovider", "tests/conformance/test_norms.py"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


@pytest.mark.parametrize("how", ["sys.exit(0)", "sys.exit()", "raise SystemExit(3)"])
def test_a_part_that_asks_to_exit_is_a_mistake(how, monkeypatch, tmp_path, capsys):
    """No run has ended well that did not train."""

    def train(*arguments, **options):
        exec(f"import sys; {how}")

    monkeypatch.setattr("reslab.train.loop.train", train)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", SMALL, "--run", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a part of the run raised SystemExit" in line
