import json
import pathlib
import sys

import pytest

from reslab.core import config as configs
from reslab.core.config_files import short_name
from reslab.core.errors import ReslabError


def test_every_shipped_config_passes_its_check():
    names = {p.stem for folder in configs.folders() for p in folder.glob("*.py")}
    assert {"base", "tiny", "small_85m"} <= names
    for name in names:
        configs.check(configs.load(name))


def test_a_config_may_have_sizes(tmp_path):
    path = tmp_path / "sized.py"
    path.write_text(
        "from typing import Literal\n"
        "from reslab.core.config import load\n"
        "def get_config(size: Literal['small', 'large'] = 'small'):\n"
        "    config = load('base')\n"
        "    config.model.depth = {'small': 2, 'large': 9}[size]\n"
        "    return config\n"
    )
    assert configs.load(str(path)).model.depth == 2
    assert configs.load(f"{path}:large").model.depth == 9
    for name, message in {
        f"{path}:huge": "size: expected 'small' or 'large'; got 'huge'",
        f"{path}:": "no config",
        "tiny:large": r"config tiny:large: expected get_config\(\); got too many",
        "gpt2": "try: frontier/gpt2$",
        "frontier/../tiny": "no config",
        "": "no config ''",
    }.items():
        with pytest.raises(ReslabError, match=message):
            configs.load(name)


def test_a_name_for_directories_tells_the_size():
    for name, wanted in {
        "configs/tiny.py": "tiny",
        "tiny": "tiny",
        "a/b.py:large": "b-large",
        "frontier/gpt2:large": "gpt2-large",
        "a:b/c.d.py": "c.d",
    }.items():
        assert short_name(name) == wanted


def test_a_misspelt_field_of_a_loaded_config_is_refused_at_once():
    for name in ("base", "tiny"):
        config = configs.load(name)
        config.model.depth = 3
        with pytest.raises(AttributeError, match='Did you mean "depth"'):
            config.model.dpeth = 3
        with pytest.raises(AttributeError):
            config.modle = 3
    recorded = configs.from_json(configs.canonical_json(config), "here")
    with pytest.raises(AttributeError):
        recorded.model.dpeth = 3


def test_a_config_is_found_by_its_earlier_name():
    for name in ("small_124m", "configs/small_124m.py"):
        with pytest.warns(FutureWarning, match="'small_124m' is now 'small_85m'"):
            found = configs.load(name)
        assert found == configs.load("small_85m")


def test_every_field_of_the_schema_has_a_comment():
    folder = configs.folders()[0]
    lines = (folder / "base.py").read_text().splitlines()
    for number, line in enumerate(lines):
        if " = " in line and "." in line.split(" = ")[0] and "ConfigDict" not in line:
            above = lines[number - 1].strip()
            assert "#" in line or above.startswith("#"), line


def test_json_round_trip_is_exact():
    config = configs.load("tiny")
    overrides = ["model.mixer=('attention','gated_delta')", "optim.clip=2"]
    configs.update(config, map(configs.parse_override, overrides))
    text = configs.canonical_json(config)
    again = configs.from_json(text, "config")
    assert configs.canonical_json(again) == text
    assert configs.sha256(again) == configs.sha256(config)
    assert again.model.mixer == ("attention", "gated_delta")
    assert again.optim.clip == 2.0


def test_a_config_of_an_older_version_does_what_it_did():
    """Fields that it did not have are off; whatever else is missing is named."""
    fields = dict(configs.flatten(configs.load("tiny")))
    older = {k: v for k, v in fields.items() if not k.startswith("probes.")}
    assert configs.from_json(json.dumps(older), "config").probes.every == 0
    del older["model.norm"]
    with pytest.raises(ReslabError, match=r"no field 'model.norm'.*another version"):
        configs.from_json(json.dumps(older), "config")


def test_a_recorded_config_is_data(tmp_path):
    fields = dict(configs.flatten(configs.load("tiny")))
    target = tmp_path / "made"
    fields["model.norm"] = f"open({str(target)!r}, 'w')"
    configs.from_json(json.dumps(fields), "config")
    assert not target.exists()


def test_differences_name_the_fields():
    one, other = configs.load("tiny"), configs.load("tiny")
    configs.update(other, [("model.depth", 9), ("seed", 1)])
    assert configs.differences(one, other) == ["model.depth", "seed"]
    assert configs.sha256(one) != configs.sha256(other)


def test_an_absurd_field_gets_no_suggestion():
    with pytest.raises(ReslabError) as error:
        configs.update(configs.load("tiny"), [("model.__class__", 1)])
    assert "lists the fields" in str(error.value)
    assert "model.features" not in str(error.value)


def test_a_path_and_a_name_are_the_same_config():
    path = configs.folders()[0] / "tiny.py"
    by_path = configs.canonical_json(configs.load(str(path)))
    assert by_path == configs.canonical_json(configs.load("tiny"))
    assert pathlib.Path(path).is_file()


def test_a_field_that_was_renamed_is_read_by_its_earlier_name():
    fields = dict(configs.flatten(configs.load("tiny")))
    fields["model.layers"] = "scan"
    del fields["model.loop"]
    with pytest.warns(FutureWarning, match="'model.layers' is now 'model.loop'"):
        assert configs.from_json(json.dumps(fields), "config").model.loop == "scan"


ENCODINGS = [
    (encoding, end)
    for encoding in ("utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16-le")
    for end in ("\n", "\r\n", "\r")
]


@pytest.mark.parametrize(("encoding", "end"), ENCODINGS)
def test_a_file_is_read_as_python_reads_it(encoding, end, tmp_path):
    lines = [
        "# \u00e9t\u00e9",
        "from reslab.core.config import load",
        "def get_config():",
        "    config = load('base')",
        "    config.data.source = \"text(path='\u00e9.txt')\"",
        "    return config",
    ]
    if not encoding.startswith("utf-8"):
        lines.insert(0, f"# -*- coding: {encoding} -*-")
    path = tmp_path / "mine.py"
    path.write_bytes(end.join(lines).encode(encoding))
    try:
        compile(path.read_bytes(), "mine.py", "exec")
    except (SyntaxError, ValueError):
        with pytest.raises(ReslabError):
            configs.load(str(path))
        return
    assert configs.load(str(path)).data.source == "text(path='\u00e9.txt')"


def test_a_file_imports_what_is_beside_it(tmp_path, monkeypatch):
    (tmp_path / "beside_a_config.py").write_text("DEPTH = 7\n")
    (tmp_path / "mine.py").write_text(
        "from beside_a_config import DEPTH\n"
        "from reslab.core.config import load\n"
        "def get_config():\n"
        "    config = load('base')\n"
        "    config.model.depth = DEPTH\n"
        "    return config\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = list(sys.path)
    assert configs.load("../mine.py").model.depth == 7
    assert sys.path == before
    del sys.modules["beside_a_config"]
