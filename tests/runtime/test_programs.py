"""Compiled programs are kept for the user unless told otherwise, and never too many."""

import os
import stat

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from reslab.runtime import programs
from reslab.runtime.programs import kept_programs


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without a folder of programs yet, nor variables of JAX."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in (programs.FOLDER, programs.LEAST_SECONDS, programs.ENABLED):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "cache"


def settings():
    names = (programs.FOLDER, programs.LEAST_SECONDS, programs.ENABLED)
    return [(os.environ.get(name), getattr(jax.config, name.lower())) for name in names]


def test_the_folder_is_the_users_and_only_for_the_block(home):
    before = settings()
    with kept_programs(True):
        folder = programs.programs_folder()
        assert folder.is_relative_to(home / "reslab" / "programs")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert settings()[:2] == [(str(folder),) * 2, ("0.3", 0.3)]
    assert settings() == before


def test_a_program_is_found_again(home, monkeypatch):
    monkeypatch.setenv(programs.LEAST_SECONDS, "0")
    with kept_programs(True):
        compilation_cache.reset_cache()
        jax.config.update(programs.LEAST_SECONDS.lower(), 0.0)
        jax.jit(lambda x: x * 3 + 0.123)(jnp.ones(5)).block_until_ready()
        assert list(programs.programs_folder().glob("jit__lambda*"))
    compilation_cache.reset_cache()


@pytest.mark.parametrize("is_wanted", [False, None])
def test_without_it_nothing_is_written(home, is_wanted):
    before = settings()
    with kept_programs(is_wanted):
        assert jax.config.jax_enable_compilation_cache is (is_wanted is None)
    assert settings() == before
    assert not home.exists()


def test_a_folder_of_ones_own_stays(home, monkeypatch, tmp_path):
    monkeypatch.setenv(programs.FOLDER, str(tmp_path / "mine"))
    before = settings()
    with kept_programs(True):
        assert settings() == before
    assert not home.exists()


def test_a_folder_that_cannot_be_is_done_without(home):
    home.write_text("a file")
    before = settings()
    with kept_programs(True):
        assert settings() == before


@pytest.mark.parametrize("name", ["", "relative/cache"])
def test_without_a_home_nothing_is_kept(name, home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", name)
    monkeypatch.setenv("HOME", "")
    before = settings()
    with kept_programs(True):
        assert settings() == before


def test_the_oldest_go_first_and_nothing_but_programs(home, monkeypatch):
    monkeypatch.setattr(programs, "LIMIT", 250)
    own = programs.programs_folder()
    other = own.with_name(f"{own.name[:-8]}00000000")
    strange = [own.parent / "mine" / "a-cache", own.parent / "b-cache", other / "notes"]
    programs_of_old = [other / f"{age}-cache" for age in range(4)]
    for age, path in enumerate([*programs_of_old, *strange]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)
        os.utime(path, (1000 - age, 1000 - age))
    with kept_programs(True):
        left = [path.name for path in programs_of_old if path.exists()]
        assert left == ["0-cache", "1-cache"]
        assert all(path.exists() for path in strange)


def test_a_program_that_changed_is_compiled_again(home):
    """As is one whose command did not end: it may be written in part."""
    folder = programs.programs_folder()
    with kept_programs(True):
        for name in ("kept", "flipped", "cut"):
            (folder / f"{name}-cache").write_bytes(b"a program")
    (folder / "flipped-cache").write_bytes(b"a qrogram")
    (folder / "cut-cache").write_bytes(b"a pro")
    (folder / "unsealed-cache").write_bytes(b"a program")
    (folder / "link-cache").symlink_to(folder / "kept-cache")
    with kept_programs(True):
        assert [path.name for path in folder.glob("*-cache")] == ["kept-cache"]
    # One that was compiled again is kept with the digest that it has now.
    with kept_programs(True):
        (folder / "flipped-cache").write_bytes(b"another program")
    with kept_programs(True):
        assert (folder / "flipped-cache").exists()
    (folder / programs.DIGESTS).write_text("[")
    with kept_programs(True):
        assert not list(folder.glob("*-cache"))
