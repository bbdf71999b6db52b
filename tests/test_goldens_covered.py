"""Every array of the authors' code is compared by a test, or excused with a reason.

`tests/goldens/coverage.tsv` lists them: family, file, state, the test or the reason,
and the names of the arrays, without their prefix "dev_". States:

    read     the test takes the array by its name: as input, setting or what it compares
    file     the test takes arrays of the file by a pattern of names
    excused  no test takes it, for the reason given
"""

import collections
import pathlib

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).parent
GOLDENS = TESTS / "goldens"
FAMILIES = {"norm", "residual", "optim", "probes"}
# Files whose arrays are kept under another name here.
KEPT_AS = {"depth": "depth_probes"}


def rows():
    lines = (GOLDENS / "coverage.tsv").read_text().splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def listed():
    """Names of the arrays of each file."""
    found = collections.defaultdict(list)
    for _, file, _, _, names in rows():
        found[file] += names.split(" ")
    return found


def test_every_row_is_whole():
    for row in rows():
        assert len(row) == 5, row
        family, file, state, by, _ = row
        assert family in FAMILIES and state in {"read", "file", "excused"}, row[:4]
        if state == "excused":
            assert len(by.split()) >= 3, f"{file}: a reason, not {by!r}"
            continue
        path, _, function = by.partition("::")
        assert (TESTS / path).is_file(), f"{file}: no {path}"
        text = (TESTS / path).read_text()
        assert not function or f"def {function}(" in text, f"{file}: no {by}"


def test_no_array_is_listed_twice():
    for file, names in listed().items():
        twice = [n for n, count in collections.Counter(names).items() if count > 1]
        assert not twice, (file, twice)


@pytest.mark.parametrize("file", sorted(listed()))
def test_every_array_is_listed(file):
    path = GOLDENS / f"{KEPT_AS.get(file, file)}.npz"
    states = {state for _, name, state, _, _ in rows() if name == file}
    if not path.exists():
        assert states == {"excused"}, f"{file} is compared, and not in the tests"
        return
    if file in KEPT_AS:  # With the parameters of the model beside them.
        return
    with np.load(path) as archive:
        kept = {name.removeprefix("dev_") for name in archive.files}
    assert kept <= set(listed()[file]), kept - set(listed()[file])
