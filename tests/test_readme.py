"""The README is the front door: its commands and examples are executed."""

import csv
import pathlib
import re
import shlex

import pytest

from reslab.cli import main
from reslab.describe import variants_table

README = pathlib.Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()
# A shorter horizon than the README's.
SHORT = "--set train.steps=2 --set data.batch=8 --set eval.batch=8 --set data.length=16"
SHORT += " --set data.source='synthetic(documents=60)'"
SHORT += " --set optim.schedule=constant --set probes.every=0"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    for block in blocks("bash"):
        for line in block.splitlines():
            for command in line.split("&&"):
                if command.strip().startswith("reslab"):
                    yield command.strip()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the files that the README shows."""
    folder = tmp_path_factory.mktemp("readme")
    for block in blocks("python"):
        named = re.match(r"# (\S+\.py)\n", block)
        if named:
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(block)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_run(command, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    _, verb, *rest = shlex.split(command)
    if verb == "train":
        rest += shlex.split(SHORT)
    if "configs/small_124m.py" in rest:
        rest += ["--set", "data.batch=8"]
    assert main([verb, *rest]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_runs(number, workplace):
    exec(compile(blocks("python")[number], "README.md", "exec"), {})


def between(name):
    return re.search(rf"<!-- {name}.*? -->\n(.*?)\n?<!-- /{name} -->", TEXT, re.DOTALL)[
        1
    ]


def test_the_figures_of_speed_are_those_of_the_benchmark():
    with open(README.parent / "experiments" / "bench" / "lm_step.csv") as file:
        for row in csv.DictReader(file):
            best, median = (
                f"{int(row[key]):,}"
                for key in ("best_tokens_per_second", "median_tokens_per_second")
            )
            assert f"| {row['contender']} | {best} | {median} |" in TEXT


def test_the_table_of_variants_is_that_of_the_folders():
    assert between("variants") == variants_table(), "reslab list --markdown"
