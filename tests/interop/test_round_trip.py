"""What is imported and exported is what came, bit for bit."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from reslab import cli
from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves
from reslab.interop.base.files import Source
from reslab.train import loop
from reslab.train.exporting import export_run
from reslab.train.generate import generate
from reslab.train.importing import (
    configured,
    divided_setup,
    import_run,
    understood,
)
from reslab.train.loading import load
from reslab.train.placing import expected_tensors
from reslab.train.probe import inspect_run
from reslab.train.run import Run
from tests.interop.conftest import (
    EXACT,
    GOLDENS,
    ONE,
    copied,
    golden,
    logits,
    own_run,
)


def tensors(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def assert_same_tensors(one, other):
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes(), name


def test_every_tensor_comes_back(family):
    """From the table alone: read and written, without a model in between."""
    found = understood(GOLDENS / family)
    setup = divided_setup(configured(found), ONE)
    for one in expected_tensors(found.source, found.family, setup):
        tensor = found.source.read(one.name)
        parts = one.form.read(tensor, [place.shape for place in one.places])
        assert [part.shape for part in parts] == [place.shape for place in one.places]
        back = one.form.write(parts)
        assert back.shape == one.shape == tensor.shape
        assert np.array_equal(back, tensor), one.name


@pytest.mark.conformance
def test_files_come_back(family, tmp_path):
    """Config and tensors alike, twice over; and each file bit for bit."""
    import_run(GOLDENS / family, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        found, wanted = tmp_path / "out" / name, GOLDENS / family / name
        assert found.read_bytes() == wanted.read_bytes()
    import_run(tmp_path / "out", tmp_path / "again")
    one, other = (load(tmp_path / name, mesh=ONE) for name in ("run", "again"))
    a, b = named_leaves(one.variables), named_leaves(other.variables)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.conformance
def test_the_earlier_dialect_and_sharded_files(tmp_path):
    """A config as on the hub, bfloat16, in several files with an index."""
    config = json.loads((GOLDENS / "llama" / "config.json").read_text())
    parameters = config.pop("rope_parameters")
    config |= {"rope_theta": parameters["rope_theta"], "rope_scaling": None}
    config["torch_dtype"] = config.pop("dtype")
    config.pop("head_dim")
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    found = tensors(GOLDENS / "llama")
    found = {name: one.astype(ml_dtypes.bfloat16) for name, one in found.items()}
    names = sorted(found)
    where = {}
    for number, part in enumerate((names[:7], names[7:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: found[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    record = import_run(folder, tmp_path / "run")
    assert record["dtype"] == "bfloat16"
    export_run(tmp_path / "run", tmp_path / "out", largest=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert_same_tensors(folder, tmp_path / "out")
    text = (tmp_path / "out" / "config.json").read_text()
    assert json.loads(text) == config
    assert Source(tmp_path / "out").tensors.keys() == found.keys()


def published(name, found):
    """Tensors as published, where `save_pretrained` stores them otherwise."""
    if name == "kimi_linear":
        return {
            key.replace("layers.0.block_sparse_moe", "layers.0.mlp"): one
            for key, one in found.items()
        }
    found = {
        key.replace("3.feedforward_layer_norm", "3.post_attention_layernorm"): one
        for key, one in found.items()
    }
    for layer in range(3):
        names = [f"model.layers.{layer}.linear_attn.{n}_conv1d.weight" for n in "qkv"]
        joint = np.concatenate([found[one] for one in names])
        found |= dict(zip(names, np.split(joint, [24, 48]), strict=True))
    return found


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["kimi_linear", "olmo_hybrid"])
def test_the_layout_of_published_files(name, tmp_path):
    folder = copied(name, tmp_path / "hub")
    found = published(name, tensors(GOLDENS / name))
    save_file(found, folder / "model.safetensors")
    import_run(folder, tmp_path / "run")
    tokens = golden(name)["input_ids"]
    logits_found = logits(load(tmp_path / "run", changes=EXACT, mesh=ONE), tokens)
    np.testing.assert_allclose(logits_found, golden(name)["logits"], atol=1e-4)
    export_run(tmp_path / "run", tmp_path / "out")
    assert_same_tensors(folder, tmp_path / "out")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_names_without_a_prefix_buffers_and_mixed_dtypes(dtype, tmp_path, capsys):
    """As the first checkpoints of GPT-2 are; each tensor keeps its dtype."""
    folder = copied("gpt2", tmp_path / "hub")
    found = tensors(GOLDENS / "gpt2")
    found = {name.removeprefix("transformer."): one for name, one in found.items()}
    found["h.0.mlp.c_fc.weight"] = found["h.0.mlp.c_fc.weight"].astype(dtype)
    buffers = {"h.0.attn.bias": np.ones((1, 1, 48, 48), np.float32)}
    buffers["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    save_file(found | buffers, folder / "model.safetensors")
    assert cli.main(["import", str(folder), "--out", str(tmp_path / "run")]) == 0
    name = {np.float16: "F16"}.get(dtype, "BF16")
    told = capsys.readouterr().out
    assert f"kept in float32; the files hold {name} and F32, which an export" in told
    export_run(tmp_path / "run", tmp_path / "out")
    out = tensors(tmp_path / "out")
    assert out.keys() == found.keys()
    assert all(out[name].dtype == found[name].dtype for name in found)
    assert all(out[name].tobytes() == found[name].tobytes() for name in found)


@pytest.mark.conformance
def test_the_directory_may_move_and_files_are_sealed(tmp_path):
    import_run(GOLDENS / "olmo2", tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    export_run(tmp_path / "moved", tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ReslabError, match="was changed since it was exported"):
        Source(tmp_path / "out")
    (tmp_path / "moved" / "huggingface" / "config.json").write_text("{}")
    with pytest.raises(ReslabError, match="was changed since it was imported"):
        export_run(tmp_path / "moved", tmp_path / "other")
    assert not (tmp_path / "other").exists()


RESAVE = """
import sys, numpy, torch, transformers
transformers.logging.set_verbosity_error()
model = transformers.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], attn_implementation="eager").eval()
tokens = torch.from_numpy(numpy.load(sys.argv[2])).long()
with torch.no_grad():
    numpy.save(sys.argv[3], model(tokens).logits.numpy())
"""


# Another Python that has transformers, where this one does not.
PYTHON = os.environ.get("RESLAB_TEST_TRANSFORMERS", sys.executable)


def logits_of_transformers(folder, tokens, scratch):
    """The logits of the class itself, in another process: importing it takes long."""
    np.save(scratch / "tokens.npy", tokens)
    command = [PYTHON, "-c", RESAVE, folder, scratch / "tokens.npy"]
    subprocess.run([*command, scratch / "logits.npy"], check=True)
    return np.load(scratch / "logits.npy")


@pytest.mark.conformance
def test_transformers_loads_an_export(family, tmp_path):
    if sys.executable == PYTHON:
        pytest.importorskip("transformers")
    import_run(GOLDENS / family, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out")
    found = logits_of_transformers(
        tmp_path / "out", golden(family)["input_ids"], tmp_path
    )
    np.testing.assert_allclose(found, golden(family)["logits"], atol=1e-4, rtol=0)


@pytest.mark.conformance
def test_generation_with_caches_is_the_full_forward(family):
    given = load(GOLDENS / family, changes=EXACT, mesh=ONE)
    prompt = golden(family)["input_ids"][:, :12]
    found = generate(given.model, given.variables, prompt, 9, temperature=0)
    whole = np.concatenate([prompt, np.asarray(found)], axis=1)
    wanted = np.argmax(logits(given, whole), axis=-1)[:, 11:-1]
    np.testing.assert_array_equal(np.asarray(found), wanted)


@pytest.mark.conformance
def test_a_run_of_ones_own_is_exported(tmp_path, capsys):
    """Gains are offsets in ours and not in theirs; a vocabulary of 257 is padded."""
    own_run(tmp_path / "run", **{"model.post_embedding_norm": "none"})
    assert cli.main(["export", str(tmp_path / "run"), f"--out={tmp_path / 'out'}"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("llama: ") and "\nno tokenizer.json: the run has no" in told
    tokens = np.arange(24).reshape(2, 12)
    found, wanted = (
        logits(load(tmp_path / name, changes=EXACT, mesh=ONE), tokens)
        for name in ("out", "run")
    )
    assert found.shape == (2, 12, 257)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.conformance
def test_an_import_is_continued_and_exported(tmp_path):
    """The names, dialect and other fields of its checkpoint stay."""
    folder = copied("gemma2", tmp_path / "hub", initializer_range=0.5)
    import_run(folder, tmp_path / "run", [("data.length", 16)])
    run = Run(tmp_path / "run")
    config = run.config()
    changes = {"train.continue_from": str(tmp_path / "run"), "train.steps": 1}
    changes |= {"optim.schedule": "constant", "probes.every": 0}
    loop.train(configs.update(config, changes.items()), tmp_path / "tuned")
    export_run(tmp_path / "tuned", tmp_path / "out")
    one, other = (tmp_path / name / "config.json" for name in ("hub", "out"))
    assert one.read_bytes() == other.read_bytes()
    assert tensors(folder).keys() == tensors(tmp_path / "out").keys()


@pytest.mark.conformance
def test_an_import_trains_on_as_a_run(tmp_path):
    """Step 0 has no state of an optimizer; a fresh one takes its place."""
    changes = {"train.steps": 1, "optim.schedule": "constant", "probes.every": 0}
    changes |= {"data.length": 16}
    import_run(GOLDENS / "llama", tmp_path / "run", changes.items())
    found = inspect_run(tmp_path / "run", ["stream"])
    assert [record["step"] for record in found] == [0]
    result = loop.train(Run(tmp_path / "run").config(), tmp_path / "run")
    assert result["step"] == 1
    about = export_run(tmp_path / "run", tmp_path / "out")
    assert about["step"] == 1
