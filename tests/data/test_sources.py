import __future__

import itertools
import pathlib
import sysconfig

import numpy as np
import pytest
import tensorflow_datasets
from array_record.python import array_record_module

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data.files import matching_files


def documents(spec):
    return list(registry.make("sources", spec).documents())


@pytest.mark.parametrize(
    "path",
    [
        "http://127.0.0.1:9/beacon",
        "https://host.example/x",
        "reference://::file:///etc/passwd",
        "simplecache::memory://bucket",
    ],
)
def test_no_host_of_somebodys_choice_is_asked(path):
    with pytest.raises(ReslabError, match="expected a local path, or one of gs://"):
        documents(f"text(path={path!r})")


def test_all_sources_are_found():
    expected = {"stdlib", "text", "tfds", "array_record", "synthetic"}
    assert expected <= set(registry.names("sources"))


def test_stdlib_is_the_source_files_in_byte_order():
    found = documents("stdlib")
    # "__future__.py" is the first name in byte order.
    assert found[0] == pathlib.Path(__future__.__file__).read_bytes()
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    sizes = {name: (root / name).stat().st_size for name in ("argparse.py", "ast.py")}
    assert set(sizes.values()) <= {len(document) for document in found}
    assert pathlib.Path(pytest.__file__).read_bytes() not in found
    assert 400 < len(found) < 900
    assert found == documents("stdlib")


def test_text_reads_one_file(tmp_path):
    (tmp_path / "one.txt").write_bytes("grüße\n".encode())
    assert documents(f"text(path={str(tmp_path / 'one.txt')!r})") == [
        "grüße\n".encode()
    ]


def test_text_reads_a_directory_in_byte_order_without_binaries(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.txt").write_text("hidden")
    (tmp_path / "b" / "deep.txt").write_text("deep")
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "Z.txt").write_text("Z")
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "latin.csv").write_bytes(b"caf\xe9")
    # "b.txt" < "b/deep.txt", since "." is the byte before "/".
    expected = [b"Z", b"a", b"b", b"deep"]
    assert documents(f"text(path={str(tmp_path)!r})") == expected


@pytest.fixture
def bucket():
    """A bucket in memory; fsspec knows it as memory://."""
    system = pytest.importorskip("fsspec").filesystem("memory")
    for name, content in {
        "bucket/Z.txt": b"Z",
        "bucket/deep/a.txt": b"a",
        "bucket/.git/config.txt": b"hidden",
        "bucket/b.txt": b"b",
        "bucket/image.png": b"\x89PNG\0",
        "bucket/deep/.hidden.txt": b"hidden",
    }.items():
        system.pipe_file(f"/{name}", content)
    yield system
    system.rm("/bucket", recursive=True)


def test_text_reads_a_bucket(bucket, monkeypatch):
    assert documents("text(path='memory://bucket')") == [b"Z", b"b", b"a"]
    assert documents("text(path='memory://bucket/*.txt')") == [b"Z", b"b"]
    assert documents("text(path='memory://bucket/deep/*')") == [b"a"]
    assert documents("text(path='memory://bucket/deep/a.txt')") == [b"a"]
    assert documents("text(path='memory://bucket/.git/*')") == [b"hidden"]
    with pytest.raises(ReslabError, match=r"memory://bucket/image\.png', which is"):
        documents("text(path='memory://bucket/*')")
    with pytest.raises(ReslabError, match="at least one file"):
        documents("text(path='memory://bucket/*.md')")
    with pytest.raises(ReslabError, match=r"abfs:// to be known here; got.*mount the"):
        documents("text(path='abfs://bucket')")

    def refuse(path, **keywords):
        raise OSError("Anonymous caller does not have access\nto the bucket")

    monkeypatch.setattr(bucket, "find", refuse)
    with pytest.raises(ReslabError, match=r"read it; got Anonymous.*access$"):
        documents("text(path='memory://bucket')")


def test_copies_of_a_bucket_are_there_one_at_a_time(bucket):
    copies = []
    for file in matching_files("memory://bucket", "test"):
        assert file.path.exists() and not any(copy.exists() for copy in copies)
        copies.append(file.path)
    assert len(copies) == 4 and not copies[-1].exists()


def test_text_reads_a_glob(tmp_path):
    for name in ("2.txt", "1.txt", "3.md"):
        (tmp_path / name).write_text(name)
    pattern = str(tmp_path / "*.txt")
    assert documents(f"text(path={pattern!r})") == [b"1.txt", b"2.txt"]


def test_text_refuses_what_is_not_there(tmp_path, refused):
    for path in ("", str(tmp_path / "none.txt"), str(tmp_path / "*.txt")):
        with refused("path", path):
            documents(f"text(path={path!r})")
    with refused("at least one file", str(tmp_path)):
        documents(f"text(path={str(tmp_path)!r})")
    with refused("path"):
        documents("text")


def test_text_refuses_empty_and_binary_files_by_name(tmp_path, refused):
    contents = {"empty.txt": b"", "nul.txt": b"a\0b", "latin.txt": b"caf\xe9"}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with refused(name):
            documents(f"text(path={str(path)!r})")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    for pattern in ("image.png", "*.png"):
        with refused("image.png", "binary"):
            documents(f"text(path={str(tmp_path / pattern)!r})")
    with refused("latin.txt", "not UTF-8 (at byte 3)"):
        documents(f"text(path={str(tmp_path)!r})")


def write_records(path, records):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_array_record_gives_one_document_a_record(tmp_path):
    write_records(tmp_path / "b.array_record", [b"three"])
    write_records(tmp_path / "a.array_record", [b"one", b"two"])
    pattern = str(tmp_path / "*.array_record")
    expected = [b"one", b"two", b"three"]
    assert documents(f"array_record(path={pattern!r})") == expected


def test_other_files_beside_array_records_are_passed_over(tmp_path, refused, capsys):
    write_records(tmp_path / "a.array_record-00000-of-00001", [b"one", b"two"])
    (tmp_path / "README.md").write_text("# Records\n" * 100)
    spec = f"array_record(path={str(tmp_path)!r})"
    assert documents(spec) == [b"one", b"two"]
    assert "passed over: " in capsys.readouterr().err
    (tmp_path / "b.array_record").write_text("# Records\n" * 100)
    with refused("b.array_record"):
        documents(spec)


def test_array_record_reads_more_than_one_chunk(tmp_path):
    records = [b"%d" % index for index in range(2100)]
    write_records(tmp_path / "many.array_record", records)
    path = str(tmp_path / "many.array_record")
    assert documents(f"array_record(path={path!r})") == records


def test_array_record_refuses_other_files(tmp_path, refused):
    (tmp_path / "text.array_record").write_text("hello " * 10000)
    (tmp_path / "empty.array_record").write_bytes(b"")
    for name in ("text.array_record", "empty.array_record", "absent.array_record"):
        with refused(name):
            documents(f"array_record(path={str(tmp_path / name)!r})")


class TinyReslabText(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Three features, of which two can be documents."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "text": features.Text(),
                    "raw": features.Tensor(shape=(None,), dtype=np.uint8),
                    "number": np.int32,
                }
            ),
        )

    def _split_generators(self, download_manager):
        return {
            "train": self._generate_examples(range(6)),
            "test": self._generate_examples(range(6, 8)),
        }

    def _generate_examples(self, numbers):
        for number in numbers:
            text = f"text {number}"
            raw = np.frombuffer(f"raw {number}".encode(), np.uint8)
            yield number, {"text": text, "raw": raw, "number": number}


@pytest.fixture(scope="module")
def data_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    builder = TinyReslabText(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return directory


@pytest.fixture
def builder_directory(data_directory):
    return str(data_directory / "tiny_reslab_text" / "1.0.0")


def test_tfds_reads_a_builder_directory(builder_directory):
    expected = {f"text {number}".encode() for number in range(6)}
    found = documents(f"tfds(directory={builder_directory!r})")
    assert set(found) == expected and len(found) == 6
    assert found == documents(f"tfds(directory={builder_directory!r})")


def test_tfds_reads_a_dataset_by_name(data_directory, builder_directory):
    named = f"tfds(name='tiny_reslab_text', directory={str(data_directory)!r})"
    assert documents(named) == documents(f"tfds(directory={builder_directory!r})")


def test_tfds_reads_byte_vectors_and_slices(builder_directory):
    spec = f"tfds(directory={builder_directory!r}, field='raw', split='test[:1]')"
    (document,) = documents(spec)
    assert document in (b"raw 6", b"raw 7")


def test_tfds_has_a_validation_split_only_if_asked(builder_directory):
    plain = registry.make("sources", f"tfds(directory={builder_directory!r})")
    assert plain.validation_documents() is None
    spec = f"tfds(directory={builder_directory!r}, validation_split='test')"
    held_out = registry.make("sources", spec).validation_documents()
    assert set(held_out) == {b"text 6", b"text 7"}


def test_tfds_refuses_what_it_cannot_read(tmp_path, builder_directory, refused):
    with refused("name or directory"):
        documents("tfds")
    with refused("no_such_dataset"):
        documents("tfds(name='no_such_dataset')")
    with refused("absent"):
        documents(f"tfds(directory={str(tmp_path / 'absent')!r})")
    with refused("nope", "test"):
        documents(f"tfds(directory={builder_directory!r}, split='nope')")
    with refused("'body'", "one of number, raw, text"):
        documents(f"tfds(directory={builder_directory!r}, field='body')")
    with refused("'number'", "expected text", "got int"):
        documents(f"tfds(directory={builder_directory!r}, field='number')")


def test_synthetic_never_changes():
    found = documents("synthetic(documents=2, words=12, seed=3)")
    assert found == [
        b"loli faso sepa nile napu bope foli bira kebi bope.\nmako bena ",
        b"sopo buma papu luro sipo neku kodi poni sepa nusi.\npapu rana ",
    ]


def test_synthetic_arguments():
    found = documents("synthetic(documents=5, words=20)")
    assert [len(document.split()) for document in found] == [20] * 5
    assert len(set(found)) == 5
    assert found[:3] == documents("synthetic(documents=3, words=20)")
    assert found != documents("synthetic(documents=5, words=20, seed=1)")


def test_synthetic_can_be_learned():
    words = b"".join(documents("synthetic")).replace(b".\n", b" ").split()
    successors = {}
    for word, following in itertools.pairwise(words):
        successors.setdefault(word, []).append(following)
    common = [
        sorted(map(v.count, set(v)), reverse=True)[:4] for v in successors.values()
    ]
    explained = sum(map(sum, common)) / (len(words) - 1)
    assert explained > 0.95  # the rest is where one document follows another


def test_synthetic_refuses_nothing_to_make(refused):
    with refused("documents", "at least 1"):
        documents("synthetic(documents=0)")
    with refused("words", "at least 1"):
        documents("synthetic(words=0)")


@pytest.mark.parametrize("damage", ["flip", "zero", "truncate"])
def test_a_damaged_array_record_is_named(tmp_path, damage, refused):
    path = tmp_path / "damaged.array_record"
    write_records(path, [b"a document of some length, number %d" % i for i in range(9)])
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "zero":
        content[300:600] = bytes(300)
    else:
        del content[300:]
    path.write_bytes(content)
    with refused("damaged.array_record", "undamaged"):
        documents(f"array_record(path={str(path)!r})")
