"""Made-up requests are carried out, or refused in one line with nothing written."""

import contextlib
import io
import json
import os
import pathlib
import shutil

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reslab.cli import VERBS, main
from reslab.core import config as configs
from reslab.core import registry
from reslab.core.errors import ReslabError, printable
from reslab.core.surroundings import reserved
from reslab.observe.metrics import check_writers
from reslab.parallel.mesh import use_mesh
from reslab.study import sweep as sweeping
from reslab.train import loop
from reslab.train.step import make_step

SMALL = str(pathlib.Path(__file__).with_name("small.py"))
LONGEST = 1_500  # Characters of the one line, the name of the command included.
FIELDS = sorted(dict(configs.flatten(configs.load("base"))))


def bounded(few, many):
    """Seeded, so that a failure comes again: 3,000 in all, at night 30,500."""

    def decorate(test):
        def examples(number):
            return settings(
                max_examples=number,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )

        return pytest.mark.parametrize(
            "chosen",
            [
                pytest.param(examples(few), id=f"{few}", marks=pytest.mark.conformance),
                pytest.param(
                    examples(many), id=f"{many}", marks=pytest.mark.exhaustive
                ),
            ],
        )(test)

    return decorate


# Parts of values, of which some are long, and some no text at all.
TOKENS = (
    *("0", "1", "-1", "-", "1.5", "1e999999", "1e-999", "nan", "inf", "-inf", "1j"),
    *("9" * 30, "9" * 400, "9" * 6000, "1" + "0" * 300 + ".0", "1_000", "0x1F", "2**9"),
    *("None", "True", "...", "()", "[]", "{}", "{{}: 1}", "{[]: 1}", "{1, 2}", "b'x'"),
    *("(", ")", "[", "]", "{", "}", ",", ":", "=", "'", '"', "*", "**", "\\", "#", "/"),
    *("(" * 300, "[" * 5000, "-" * 5000, "x" * 300, "y" * 6000, "a." * 600, "((1,),)"),
    *(".", "..", ".x", "~", "~nobody", "\0", "\n", "\r\n", "\t", "\x1b[31m", "\x85"),
    *("\ud800", "\udcff", "\ufeff", "\u202e", "é", " ", "f'{1}'", "lambda: 1"),
    *("rms", "rms(epsilon=", "hyper(streams=", "attention(heads=", "nothing", "x=1"),
    *("if", "text(path=", "skip(sigma=", "looped(loops=", "gs://", "%s", "{0}", "-h"),
)
tokens = st.sampled_from(TOKENS)
anything = st.text(st.characters(exclude_categories=()), max_size=20)
values = st.one_of(tokens, st.lists(tokens, max_size=6).map("".join), anything)
numbers = st.one_of(
    tokens, st.integers().map(str), st.floats().map(str), st.integers(-9, 99).map(str)
)
shallow = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), values),
    st.sampled_from([10**30, -(10**400), 2**63, 1e308]),
)
plain = st.recursive(
    shallow,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty working directory, and a finished run beside it."""
    directory = tmp_path_factory.mktemp("fuzz")
    assert main(["train", "--config", SMALL, "--run", str(directory / "run")]) == 0
    (directory / "here").mkdir()
    before = os.getcwd()
    os.chdir(directory / "here")
    yield directory
    os.chdir(before)


def check_only(config, directory, **options):
    """Stands for training: checks what can be checked at once, and stops there."""
    configs.check(config)
    check_writers(config.train.writers)
    configs.from_json(configs.canonical_json(config), "config")
    raise ReslabError("as far as this goes, nothing is wrong")


def plan_only(planned, **options):
    """Stands for the runs of a study: a whole benchmark is hours of them."""
    raise ReslabError("as far as this goes, nothing is wrong")


def attacked(arguments):
    """Runs a command; gives its exit code, and what is wrong with its answer."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stopped:
            code = stopped.code
    written = sorted(os.listdir())
    for name in written:
        if os.path.isdir(name) and not os.path.islink(name):
            shutil.rmtree(name)
        else:
            os.unlink(name)
    told = err.getvalue()
    if "Traceback" in told + out.getvalue() or code not in (0, 1, 2):
        return code, f"exit {code}: {told[-3000:]}"
    if code == 2:
        if len(told.splitlines()) != 1 or printable(told) != told:
            return code, f"not one printable line: {told!r}"
        if len(told) > LONGEST:
            return code, f"{len(told)} characters: {told}"
        if written:
            return code, f"wrote {written}"
    return code, None


@pytest.fixture
def checked(place, monkeypatch):
    """Checks the answer of a command, which is run as far as it is cheap."""
    monkeypatch.setattr(loop, "train", check_only)
    monkeypatch.setattr(sweeping, "sweep", plan_only)

    def check(arguments):
        code, problem = attacked(arguments)
        assert problem is None, problem
        return code

    return check


@bounded(1300, 12_500)
def test_values_of_fields(chosen, checked):
    @chosen
    @given(st.lists(st.tuples(st.sampled_from(FIELDS), values), max_size=2))
    def attack(pairs):
        sets = [f"--set={key}={value}" for key, value in pairs]
        checked(["train", "--config", SMALL, "--run", "run", *sets])

    attack()


@bounded(500, 5000)
def test_arguments_of_variants(chosen, checked):
    names = [
        (family, name)
        for family in registry.FAMILIES
        for name in registry.names(family)
        if family not in ("models", "tasks")
    ]

    @chosen
    @given(st.data())
    def attack(data):
        family, name = data.draw(st.sampled_from(names))
        known = list(registry.arguments(registry.module(family, name).build))
        key = data.draw(st.sampled_from([*known, "x"]))
        value = data.draw(numbers | values | plain.map(repr))
        with contextlib.suppress(ReslabError):
            registry.factory(family, f"{name}({key}={value})")

    attack()


@bounded(500, 5000)
def test_command_lines(chosen, checked):
    words = st.one_of(
        *(values, numbers, st.sampled_from(["--set", "--run", "--out", "--seed"])),
        st.sampled_from(
            ["--config", "--json", "--manifest", "base", "norms", "nowhere"]
        ),
    )

    @chosen
    @given(st.sampled_from(VERBS), st.lists(words, max_size=4))
    def attack(verb, rest):
        if verb in ("doctor", "drill", "bench", "compile") and not rest:
            return
        checked([verb, *rest])

    attack()


@bounded(400, 3500)
def test_numbers_of_options(chosen, checked, place):
    run = str(place / "run")
    options = (
        *(("train", "--watchdog"), ("generate", "--length"), ("generate", "--seed")),
        *(("generate", "--temperature"), ("generate", "--top-k"), ("show", "--width")),
        *(("generate", "--top-p"), ("generate", "--samples"), ("inspect", "--step")),
        *(("sweep", "--only"), ("sweep", "--jobs"), ("sweep", "--shard")),
        *(("train", "--processes"), ("train", "--profile"), ("compile", "--topology")),
    )
    usual = {
        "train": ["train", "--config", SMALL],
        # No run: what is asked of it is refused before, or it is.
        "generate": ["generate", str(place / "none")],
        "inspect": ["inspect", str(place / "none")],
        "show": ["show", "norms/rms"],
        "sweep": ["sweep", "nowhere.py"],
        "compile": ["compile", "nowhere"],
    }
    assert os.path.isdir(run)

    @chosen
    @given(st.sampled_from(options), numbers)
    def attack(option, value):
        verb, name = option
        code = checked([*usual[verb], f"{name}={value}"])
        assert code == 2 or verb == "show"

    attack()


# Literals of a right form, if not of a right size.
LITERALS = (
    *("0", "-1", "1", "2", "3", "7", "1000000", "2147483648", "9223372036854775807"),
    *("0.5", "-0.5", "1e308", "1e-308", "-1e30", "''", "'x'", "'rms'", "()", "(1,)"),
    *("(0,0)", "(1,2,3)", "((1,2),)", "None", "True", "False", "('a','b')", "(None,)"),
)
BUILT = {
    **{f"{part}s": f"model.{part}" for part in ("norm", "placement", "residual")},
    **{f"{part}s": f"model.{part}" for part in ("mixer", "ffn", "linear", "position")},
    **{"blocks": "model.block", "stacks": "model.stack", "optimizers": "optim.name"},
    **{"schedules": "optim.schedule", "value_paths": "", "scalings": ""},
}


@bounded(15, 1500)
def test_specs_that_are_built(chosen, checked, monkeypatch):
    """One argument of one variant, as far as a step is traced."""
    built = []

    def build_only(config, directory, **options):
        setup = loop.prepare(config)
        batch = setup.task.batch_shapes(config.data.batch)
        with use_mesh(setup.mesh):
            jax.eval_shape(make_step(setup), setup.shapes, batch)
        built.append(1)
        if len(built) % 20 == 0:
            jax.clear_caches()  # Each trace is kept, and 1,500 are 13 GB.
        raise ReslabError("nothing is wrong")

    monkeypatch.setattr(loop, "train", build_only)
    arguments = [
        (family, name, argument)
        for family in BUILT
        for name in registry.names(family)
        for argument in registry.arguments(registry.module(family, name).build)
        if argument not in reserved(family)
    ]

    @chosen
    @given(st.sampled_from(arguments), st.sampled_from(LITERALS))
    def attack(argument, literal):
        family, name, key = argument
        spec = f"{name}({key}={literal})"
        if family == "value_paths":
            spec, family = f"attention(heads=2, value_path={spec!r})", "mixers"
        field = BUILT[family] or "optim.groups"
        if family == "scalings":
            spec = f"(('.', {{'scaling': {spec!r}}}),)"
        checked(["train", "--config", SMALL, "--run", "run", f"--set={field}={spec}"])

    attack()


@bounded(285, 3000)
def test_files_of_a_run(chosen, checked, place):
    copy = place / "copy"
    files = ("config.json", "run.json", "result.json", "metrics.jsonl")
    whole = {name: (place / "run" / name).read_bytes() for name in files}
    record = json.loads(whole["run.json"])
    del record["ended"]  # Or else its digests would say all.
    whole["run.json"] = json.dumps(record).encode()

    @st.composite
    def damaged(draw):
        """A file, and other content: other bytes, another form, or other values."""
        name = draw(st.sampled_from(files))
        content = whole[name]
        kind = draw(st.sampled_from(["cut", "bytes", "form", "value", "text"]))
        if kind == "cut":
            return name, content[: draw(st.integers(0, len(content)))]
        if kind == "bytes":
            at = draw(st.integers(0, len(content)))
            return name, content[:at] + draw(st.binary(max_size=9)) + content[at:]
        if kind == "form":
            return name, json.dumps(draw(plain)).encode()
        if kind == "text":
            return name, draw(values).encode(errors="surrogatepass")
        record = json.loads(content.splitlines()[0] if "jsonl" in name else content)
        key = draw(st.sampled_from(sorted(record)))
        record[key] = draw(plain)
        return name, json.dumps(record).encode() + b"\n"

    # The others read the same files, and take longer where these are right.
    verbs = ("report", "generate", "train")
    if chosen.max_examples > 1000:
        verbs += ("show", "eval")

    @chosen
    @given(damaged(), st.sampled_from(verbs))
    def attack(damage, verb):
        name, content = damage
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for other in files:
            (copy / other).write_bytes(whole[other])
        if name == "config.json":  # Or else its digest would say all.
            (copy / "run.json").unlink()
        (copy / name).write_bytes(content)
        checked([verb, *(["--from-run"] if verb == "train" else ()), str(copy)])

    attack()
