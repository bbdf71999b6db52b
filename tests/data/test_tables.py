"""Corpora as others publish them: Parquet, datasets on disk, compressed lines."""

import gzip
import sys

import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError

TEXTS = ["one", "zwei: grüße", "three " * 3]
EXPECTED = [text.encode() for text in TEXTS]
LINES = b"".join(b'{"text": "%d"}\n' % number for number in range(3000))


def documents(spec):
    return list(registry.make("sources", spec).documents())


def write_parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)


def test_parquet_gives_one_document_a_row(tmp_path):
    write_parquet(tmp_path / "b.parquet", text=TEXTS[2:], number=[3])
    write_parquet(tmp_path / "a.parquet", text=TEXTS[:2], number=[1, 2])
    (tmp_path / "README.md").write_text("about")
    assert documents(f"parquet(path={str(tmp_path)!r})") == EXPECTED
    many = [str(number) for number in range(2500)]
    write_parquet(tmp_path / "c.parquet", body=many)
    spec = f"parquet(path={str(tmp_path / 'c.parquet')!r}, field='body')"
    assert documents(spec) == [text.encode() for text in many]


def test_parquet_refuses_what_it_cannot_read(tmp_path, refused):
    write_parquet(tmp_path / "a.parquet", text=["x", None], number=[1, 2])
    path = str(tmp_path / "a.parquet")
    with refused("'body'", "number, text"):
        documents(f"parquet(path={path!r}, field='body')")
    with refused("a.parquet", "text in every row", "nothing"):
        documents(f"parquet(path={path!r})")
    with refused("a.parquet", "got int"):
        documents(f"parquet(path={path!r}, field='number')")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but no more")
    with refused("b.parquet", "undamaged"):
        documents(f"parquet(path={str(tmp_path / 'b.parquet')!r})")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "README.md").write_text("about")
    with refused("expected rows"):
        documents(f"parquet(path={str(tmp_path / 'none')!r})")


def test_a_dataset_on_disk(tmp_path, refused):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": TEXTS, "number": [1, 2, 3]})
    rows.save_to_disk(str(tmp_path / "plain"))
    split = datasets.DatasetDict({"train": rows, "test": rows.select([1])})
    split.save_to_disk(str(tmp_path / "split"))
    plain = f"directory={str(tmp_path / 'plain')!r}"
    split = f"directory={str(tmp_path / 'split')!r}"
    assert documents(f"datasets({plain})") == EXPECTED
    spec = f"datasets({split}, validation_split='test')"
    assert documents(spec) == EXPECTED
    held = registry.make("sources", spec).validation_documents()
    assert list(held) == EXPECTED[1:2]
    whole = registry.make("sources", f"datasets({plain})")
    assert whole.validation_documents() is None
    with refused("no split 'dev'", "test, train"):
        documents(f"datasets({split}, split='dev')")
    with refused("no column 'body'"):
        documents(f"datasets({plain}, field='body')")
    with refused("got int"):
        documents(f"datasets({plain}, field='number')")
    with refused("save_to_disk"):
        documents(f"datasets(directory={str(tmp_path)!r})")
    with refused("directory"):
        documents("datasets")
    with refused("hf://"):
        documents("datasets(directory='hf://datasets/somebody/some')")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_lines_may_be_compressed(tmp_path, suffix):
    packed = LINES
    if suffix == ".gz":
        packed = gzip.compress(LINES)
    elif suffix == ".zst":
        packed = pytest.importorskip("zstandard").compress(LINES)
    path = tmp_path / f"lines.jsonl{suffix}"
    path.write_bytes(packed)
    spec = f"jsonl(path={str(path)!r})"
    assert documents(spec) == [b"%d" % number for number in range(3000)]
    if suffix:
        path.write_bytes(b"no archive at all")
        with pytest.raises(ReslabError, match="a file that can be read"):
            documents(spec)


@pytest.mark.parametrize(
    "package, spec",
    [
        ("pyarrow", "parquet(path='{}')"),
        ("datasets", "datasets(directory='{}')"),
        ("zstandard", "jsonl(path='{}/a.zst')"),
    ],
)
def test_missing_packages_name_their_extra(tmp_path, monkeypatch, package, spec):
    (tmp_path / "a.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ReslabError, match=rf"'{package}' is not.*reslab\[corpora\]"):
        documents(spec.format(tmp_path))
