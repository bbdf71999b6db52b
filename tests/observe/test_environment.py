"""The description of the surroundings."""

import importlib.metadata
import json
import socket
import subprocess

import jax
import pytest

import reslab
from reslab.observe import environment as module
from reslab.observe.environment import environment, extras


def test_it_is_json_and_says_what_ran(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--some_flag=1")
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["reslab"] == reslab.__version__
    assert {"python", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"} <= set(
        found["versions"]
    )
    assert found["platform"] == "cpu"
    assert found["device_count"] == jax.device_count()
    assert found["process_count"] == 1
    assert found["flags"]["LIBTPU_INIT_ARGS"] == "--some_flag=1"


def test_it_does_not_say_where(monkeypatch):
    assert socket.gethostname() not in json.dumps(environment()["versions"])
    assert not {"host", "hostname", "user", "path"} & set(environment())


def git(folder, *command):
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.com")
    subprocess.run(["git", *identity, *command], cwd=folder, check=True)


def test_commit_of_the_source_tree(tmp_path):
    folder = tmp_path / "reslab"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    assert module._commit(folder) is None
    git(tmp_path, "init", "--quiet")
    # Inside a repository, but not part of it: an installed copy.
    assert module._commit(folder) is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    commit = module._commit(folder)
    assert commit is not None and len(commit) == 40
    (folder / "__init__.py").write_text("changed = True")
    assert module._commit(folder) == commit + "-dirty"


def test_commit_of_a_copy(tmp_path):
    folder = tmp_path / "reslab"
    folder.mkdir()
    for said, commit in (("a" * 40 + "\n", "a" * 40), ("a" * 40 + "-dirty", ...)):
        (tmp_path / ".commit").write_text(said)
        assert module._commit(folder) == (said if commit is ... else commit)
    for said in ("", "main", "a" * 41, "é"):
        (tmp_path / ".commit").write_text(said)
        assert module._commit(folder) is None


def test_commit_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._commit(tmp_path) is None


def test_extras(monkeypatch):
    requirements = [
        "jax>=0.10.2",
        'no-such-package>=1; extra == "track"',
        "numpy[all]>=1; python_version > '3' and extra == 'hf'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    assert extras() == {
        "track": {"no-such-package": None},
        "hf": {"numpy": importlib.metadata.version("numpy")},
    }


def test_extras_when_not_installed(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert extras() == {}


def test_a_package_without_requirements(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: None)
    assert extras() == {}


@pytest.mark.parametrize("package", ["no-such-package", "jax"])
def test_versions(package):
    assert (module._version(package) is None) == (package == "no-such-package")
