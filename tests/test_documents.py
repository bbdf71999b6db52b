"""The documents are the front door: their commands and examples are executed."""

import csv
import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import pytest

from reslab import drill
from reslab.cli import main
from reslab.commands.variants import variants_table
from reslab.core import registry

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PROTOCOLS = DOCS / "PROTOCOLS.md"
COST = (DOCS / "COST.md").read_text()
TUTORIAL = ROOT / "experiments" / "tutorial" / "README.md"
TEXT = README.read_text()
# A shorter horizon than that of the documents.
SHORT = "--set train.steps=2 --set data.batch=8 --set eval.batch=8 --set data.length=16"
SOURCE = "--set data.source='synthetic(documents=60)'"
SHORT += " --set optim.schedule=constant --set probes.every=0"
NARROW = "--set model.features=64 --set model.depth="


def blocks(language, text=TEXT):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(block):
    """The `reslab` commands of a block, in order."""
    for line in block.splitlines():
        for command in line.split("&&"):
            if command.strip().startswith("reslab"):
                yield shlex.split(command)


def write_files(text, folder):
    """Writes the files that a document shows."""
    for block in blocks("python", text):
        named = re.match(r"# (\S+\.py)\n", block)
        if named:
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(block)
    return folder


def shortened(verb, *arguments):
    """A command that does the same with less."""
    is_continued = "--continue-from" in arguments
    if verb in ("train", "sweep"):
        arguments = *arguments, *shlex.split(SHORT)
        if not is_continued and not any(
            "data.source=" in argument for argument in arguments
        ):
            arguments = *arguments, *shlex.split(SOURCE)
    if verb == "train" and not is_continued:
        is_tiled = any("model.mixer=(" in argument for argument in arguments)
        arguments = *arguments, *shlex.split(f"{NARROW}{1 + is_tiled}")
    if "configs/small_85m.py" in arguments:
        small = "--set data.batch=8 --set model.depth=1 --set model.features=96"
        arguments = *arguments, *shlex.split(small)
    if verb == "sweep":
        is_own = arguments[0].startswith("lab/")
        less = ("--set", "model.depth=2") if is_own else ("--only", "0")
        arguments = *arguments, *less
    return [verb, *arguments]


# A run that is continued is made first.
CONTINUED = (pytest.mark.conformance,)

# The README is the front door; commands of other pages are run in the second stage.
PAGES = {
    README: (),
    **dict.fromkeys(
        (DOCS / "GUIDE.md", DOCS / "COST.md", DOCS / "CHECKPOINTS.md"),
        (pytest.mark.conformance,),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, marks=CONTINUED if "import" in block else marks)
        for page, marks in PAGES.items()
        for block in blocks("bash", page.read_text())
        if list(commands(block))
    ],
)
def test_commands_run(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(write_files(TEXT, tmp_path))
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    # Any checkpoint would do.
    (tmp_path / "gpt2").symlink_to(ROOT / "tests" / "goldens" / "interop" / "gpt2")
    for _, *command in commands(block):
        assert main(shortened(*command)) == 0, capsys.readouterr().err


# Runs commands one after the other, until one fails.
ALL_OF = """
import json, sys
from reslab.cli import main
for command in json.loads(sys.argv[1]):
    if code := main(command):
        sys.exit(code)
"""


@pytest.mark.conformance
def test_the_tutorial_runs(tmp_path, shell):
    """Every command in order, all in one process, as little else imports `lab`."""
    text = TUTORIAL.read_text().replace("seeds=(0, 1, 2)", "seeds=(0,)")
    write_files(text, tmp_path)
    asked = [
        shortened(*command)
        for block in blocks("bash", text)
        for _, *command in commands(block)
    ]
    done = subprocess.run(
        [sys.executable, "-P", "-c", ALL_OF, json.dumps(asked)],
        cwd=tmp_path,
        env=shell,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "runs" / "lab" / "report.html").read_text()
    assert "leaky" in page
    assert "KL(lens" in page


@pytest.mark.conformance
def test_the_loop_to_fork_trains(monkeypatch, capsys):
    """With one layer in place of four."""
    monkeypatch.setattr(sys, "argv", ["loop.py", "21"])
    text = TUTORIAL.with_name("loop.py").read_text()
    assert "depth=4," in text
    program = compile(text.replace("depth=4,", "depth=1,"), "loop.py", "exec")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(program, {"__name__": "__main__"})
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 3
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.conformance
def test_the_notebook_runs():
    """Its five cells one after the other, with a shorter horizon."""
    notebook = json.loads(TUTORIAL.with_name("tutorial.ipynb").read_text())
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    cells = ["".join(cell["source"]) for cell in codes]
    assert len(cells) == 5
    assert not any(cell["outputs"] for cell in codes)
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for number, cell in enumerate(cells, 1):
            cell = cell.replace("steps=60", "steps=10")
            exec(compile(cell, f"tutorial.ipynb, cell {number}", "exec"), names)
    assert {*names["results"]} == {"plain", "leaky"}
    assert all(losses[-1] < losses[0] for losses in names["results"].values())


# As in the documents, with a shorter horizon on less text.
BRIEF = (
    ('"train.steps": 60}', '"train.steps": 2, "data.source": SHORT}'),
    ('"train.steps": 20,', '"train.steps": 2, "data.source": SHORT,'),
    ('"train.steps": 100,', '"train.steps": 2, "data.source": SHORT,'),
    ("SHORT", "'synthetic(documents=60)', 'probes.every': 0, MORE"),
    ("MORE", "'eval.batch': 8, 'optim.schedule': 'constant'"),
)


def brief(text):
    for long, short in BRIEF:
        text = text.replace(long, short)
    return text


@pytest.mark.conformance
def test_examples_of_python_run(tmp_path, monkeypatch):
    """All of the page, one after the other."""
    monkeypatch.chdir(tmp_path)
    page = brief((DOCS / "PYTHON.md").read_text())
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for number, block in enumerate(blocks("python", page)):
            exec(compile(block, f"PYTHON.md, example {number}", "exec"), names)
    assert names["trained"].result["step"] == 2
    assert "eval_bpb" not in names["own"].result
    assert names["y"].shape == (2, 8)
    assert jax.tree.leaves(names["gradient"])


@pytest.mark.conformance
@pytest.mark.slow
def test_the_notebook_of_the_functions_runs(tmp_path):
    """In a kernel of its own, as a person runs it, with a shorter horizon."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "experiments" / "notebook.ipynb", 4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    for cell in notebook.cells:
        cell.source = brief(cell.source)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    said = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stdout"
    ]
    assert "bits per byte held out" in said[0]
    assert "stream norm by site" in "".join(said)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_runs(number):
    exec(compile(blocks("python")[number], "README.md", "exec"), {})


@pytest.mark.conformance
def test_the_example_of_interventions_runs():
    """As the guide has it; the other block there needs a run."""
    block, of_a_run = blocks("python", (DOCS / "GUIDE.md").read_text())
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(block, "GUIDE.md", "exec"), names)
    assert names["logits"].shape == (1, 8, 32)
    assert "restore(" in of_a_run


@pytest.mark.conformance
def test_examples_of_protocols_run():
    """One after the other, as a reader of the page would; models are built."""
    names, tokens = {}, jax.ShapeDtypeStruct((1, 4), "int32")
    for number, block in enumerate(blocks("python", PROTOCOLS.read_text())):
        assert block.count("\n") <= 30, number
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            exec(compile(block, f"PROTOCOLS.md, example {number}", "exec"), names)
            if model := names.pop("model", None):
                variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
                logits = jax.eval_shape(model.apply, variables, tokens)
                assert logits.shape == (1, 4, 32)


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md")))
def test_files_and_links_that_a_page_names_exist(page):
    text = (DOCS / page).read_text()
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|md))", text):
        assert (ROOT / path).exists() or (ROOT / "reslab" / path).exists(), path
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (DOCS / link).exists(), link


def test_the_figures_of_speed_are_those_of_the_benchmark():
    with open(ROOT / "experiments" / "bench" / "lm_step.csv") as file:
        for row in csv.DictReader(file):
            best, median = (
                f"{int(row[key]):,}"
                for key in ("best_tokens_per_second", "median_tokens_per_second")
            )
            assert f"| {row['contender']} | {best} | {median} |" in COST


def test_estimated_steps_are_those_of_the_table():
    _, _, told = COST.partition("a step at 24 layers is estimated to take")
    told, _, _ = told.partition("\n\n")
    with open(ROOT / "experiments" / "bench" / "depth_memory.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["layers"] == "24"]
    ratios = {row["residual"]: row["step_to_plain"] for row in rows}
    found = re.findall(r"`([^`]+)`\s(\d+\.\d\d)", told)
    assert found and dict(found) == {name: ratios[name] for name, _ in found}
    assert {row["libtpu"] for row in rows if row["step_to_plain"]} == {"0.0.52"}


def test_the_table_of_variants_is_that_of_the_folders():
    text = (DOCS / "VARIANTS.md").read_text()
    table = re.search(
        r"<!-- variants.*? -->\n(.*?)\n?<!-- /variants -->", text, re.DOTALL
    )
    assert table and table[1] == variants_table(), "reslab list --markdown"


@pytest.mark.conformance
def test_the_site_is_built(tmp_path):
    """Without a warning; every variant is on the page of its family."""
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for family in registry.FAMILIES:
        page = (tmp_path / "families" / family / "index.html").read_text()
        shown = re.findall(r'<h2 id="(\w+)"', page)
        assert shown == [*registry.names(family)]
        assert not re.search(r"\((and )?those of <code>", page)


@pytest.mark.conformance
def test_a_checkpoint_is_loaded(tmp_path, monkeypatch):
    text = (DOCS / "CHECKPOINTS.md").read_text()
    (tmp_path / "gpt2").symlink_to(ROOT / "tests" / "goldens" / "interop" / "gpt2")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python", text)
    names = {}
    exec(compile(block, "CHECKPOINTS.md", "exec"), names)
    assert names["logits"].shape == (1, 3, 128)


def test_the_readme_is_short():
    assert len(TEXT.split()) <= 900


def test_the_table_of_faults_has_every_row():
    text = (DOCS / "RELIABILITY.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [*drill.ROWS]
