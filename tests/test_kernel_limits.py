"""What a kernel cannot do, told for a whole config in one line."""

import pytest

from reslab.cli import main


@pytest.mark.conformance
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"head_dim": 512}, "a chunk of 128 tokens does not fit"),
        ({"chunk": 64}, "chunks of 64 tokens, only of 128"),
    ],
)
def test_a_config_whose_chunk_does_not_fit_is_refused(
    changes, words, capsys, monkeypatch, tmp_path
):
    pytest.importorskip("libtpu")
    monkeypatch.chdir(tmp_path)
    options = ",".join(f"{name}={value}" for name, value in changes.items())
    sets = [f"model.mixer=gated_delta(heads=2,{options})", "model.kernels=pallas"]
    sets += ["data.length=256", "model.depth=1", "model.features=64"]
    arguments = [word for change in sets for word in ("--set", change)]
    assert main(["compile", "tiny", "--topology", "v5e:2x2", *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert words in said[-1] and len(said) <= 2  # After the line of progress.
    assert not list(tmp_path.iterdir())
