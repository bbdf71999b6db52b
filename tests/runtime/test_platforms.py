"""Without chips libtpu stays asleep; whatever a person chose stays."""

import importlib.util
import os

import pytest

from reslab.runtime import platforms


@pytest.mark.parametrize(
    "chosen, chips, packages, found",
    [
        ("", [], {"libtpu"}, "cpu"),
        ("", ["/dev/accel0"], {"libtpu"}, ""),
        ("", [], {"libtpu", "jax_plugins"}, ""),
        ("", [], set(), ""),
        ("tpu", [], {"libtpu"}, "tpu"),
    ],
)
def test_the_platform_is_chosen(chosen, chips, packages, found, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", chosen)
    monkeypatch.setattr(platforms.glob, "glob", lambda name: chips)
    specs = {name: object() for name in packages}
    monkeypatch.setattr(importlib.util, "find_spec", specs.get)
    platforms.leave_absent_tpus()
    assert os.environ["JAX_PLATFORMS"] == found
