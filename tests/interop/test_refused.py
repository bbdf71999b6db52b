"""Checkpoints and runs that are refused: in one line, with nothing left behind."""

import json
import os
import re
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from reslab import cli, load
from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.interop.base.family import closest, family_of
from reslab.interop.base.files import Source
from reslab.interop.base.sizes import resolved
from reslab.train.exporting import export_run
from reslab.train.importing import (
    configured,
    divided_setup,
    import_run,
    understood,
)
from reslab.train.placing import expected_tensors, layout
from tests.interop.conftest import GOLDENS, ONE, change_config, copied

CASES = json.loads((GOLDENS / "reject_cases.json").read_text())
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def change_tensors(folder, change):
    found = load_file(folder / SINGLE)
    change(found)
    save_file(found, folder / SINGLE)


def shard(folder, count=4):
    """Divides the one file of a checkpoint, with an index."""
    found = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names, where = sorted(found), {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: found[name] for name in names[number::count]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))


def made(case, folder):
    """The checkpoint of a case of `reject_cases.json`."""
    base = case["base"].split("/")[0]
    copied(base, folder, **case.get("patch", {}))
    if "remove_key" in case:
        change_config(folder, **{case["remove_key"]: ...})
    if "drop_tensor" in case:
        change_tensors(folder, lambda found: found.pop(case["drop_tensor"]))
    if "add_tensor" in case:
        added = case["add_tensor"]
        new = {added["name"]: np.ones(added["shape"], np.float32)}
        change_tensors(folder, lambda found: found.update(new))
    if "drop_shard" in case:
        shard(folder)
        (folder / case["drop_shard"]).unlink()
    return folder


def check(folder):
    """All that is done before a run directory is begun."""
    found = understood(folder)
    setup = divided_setup(configured(found), ONE)
    return found, expected_tensors(found.source, found.family, setup)


# What the line of each case must name.
NAMED = [
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "add_cross_attention",
    "activation_function.*relu6",
    r"n_head.*divisor of n_embd \(32\).*5",
    "lacks lm_head.weight.*untied",
    "rope_type.*yarn",
    "kv_heads.*divisor of heads.*3",
    "lacks .*_proj.bias",
    "hidden_act.*silu.*gelu",
    "lacks model.layers.1.mlp.up_proj.weight",
    "holds model.layers.0.self_attn.q_norm.weight",
    "holds model.layers.2",
    "lm_head.weight differs from model.embed_tokens.weight",
    None,  # Sliding windows are supported.
    "lacks model.layers.0.self_attn.q_norm.weight",
    "has no model-00002-of-00004.safetensors",
    r"shape of model.layers.0.self_attn.k_proj.weight.*\(32, 32\).*\(16, 32\)",
]


@pytest.mark.parametrize("index", range(len(CASES["cases"])))
def test_every_case_is_refused_or_supported(index, tmp_path):
    folder = made(CASES["cases"][index], tmp_path / "x")
    if NAMED[index] is None:
        found, _ = check(folder)
        assert found.fields["model.mixer"][1].endswith("window=8)")
        return
    with pytest.raises(ReslabError, match=NAMED[index]):
        check(folder)


@pytest.mark.parametrize("index", range(1, len(CASES["accept_cases"])))
def test_every_other_case_is_accepted(index, tmp_path):
    # Case 0 and the dialect of case 2 are in test_round_trip.
    check(made(CASES["accept_cases"][index], tmp_path / "x"))


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
UNSUPPORTED = [
    ("qwen3_next", {"linear_conv_kernel_dim": 3}, "linear_conv_kernel_dim.*4.*got 3"),
    ("qwen3_next", {"num_experts": 3}, r"holds .*experts\.3\."),
    ("qwen3_next", {"num_experts": 5}, r"lacks .*experts\.4\."),
    ("qwen3_next", {"mlp_only_layers": "all"}, "mlp_only_layers: expected a list"),
    ("qwen3_next", {"mlp_only_layers": [0]}, r"lacks model\.layers\.0\.mlp\.gate_proj"),
    ("deepseek_v3", {"rope_parameters": YARN}, "rope_type.*yarn"),
    ("deepseek_v3", {"q_lora_rank": None}, r"lacks .*self_attn\.q_proj"),
    ("deepseek_v3", {"attention_bias": True}, "attention_bias is not supported"),
    ("deepseek_v3", {"n_group": 3}, "groups: expected a divisor of the 4 experts"),
    ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads.*4.*got 2"),
    (
        "kimi_linear",
        {"linear_attn_config": 3},
        "linear_attn_config: expected an object",
    ),
    ("kimi_linear", {"mla_use_nope": False}, "mla_use_nope is not supported"),
    ("kimi_linear", {"layer_types": ["full_attention"]}, "layer_types: expected 5"),
    ("lfm2", {"conv_L_cache": 4}, r"conv\.conv\.weight.*\(32, 1, 4\).*\(32, 1, 3\)"),
    ("lfm2", {"conv_bias": True}, r"lacks .*conv\.in_proj\.bias"),
    ("lfm2", {"block_auto_adjust_ff_dim": False}, r"feed_forward\.w1.*\(48, 32\)"),
    (
        "mamba",
        {"time_step_rank": "full"},
        "time_step_rank: expected a whole number above 0",
    ),
    ("mamba", {"use_conv_bias": False}, r"holds .*mixer\.conv1d\.bias"),
    ("mamba", {"intermediate_size": 64}, r"mixer\.in_proj.*\(128, 32\).*\(96, 32\)"),
    ("mamba2", {"time_step_limit": [0.0, 1.0]}, "time_step_limit is not supported"),
    ("mamba2", {"n_groups": 3}, r"groups: expected a divisor of heads \(8\)"),
    ("recurrent_gemma", {"block_types": []}, "block_types: expected a list"),
    ("recurrent_gemma", {"block_types": ["attention"]}, r"lacks .*temporal_block"),
    ("recurrent_gemma", {"rope_parameters": YARN}, "rope_type.*yarn"),
    ("olmo_hybrid", {"linear_conv_kernel_dim": 3}, "linear_conv_kernel_dim.*got 3"),
    ("olmo_hybrid", {"layer_types": ["full_attention"] * 4}, r"lacks .*self_attn"),
    ("olmo_hybrid", {"linear_value_head_dim": 9}, r"shape of .*v_proj.*\(36, 32\)"),
    ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is not supported"),
]


@pytest.mark.parametrize("name, changes, line", UNSUPPORTED, ids=str)
def test_what_is_not_supported_is_named(name, changes, line, tmp_path):
    with pytest.raises(ReslabError, match=line):
        check(copied(name, tmp_path / "x", **changes))


def header(path, text, body=b"", length=None):
    data = text.encode()
    path.write_bytes(struct.pack("<Q", length or len(data)) + data + body)


def overlap(folder):
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header(folder / SINGLE, json.dumps({"a": one, "b": one}), bytes(8))


def pickle(folder):
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def truncate(folder):
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[: len(data) // 2])


def link(folder):
    outside = folder.parent / "elsewhere.safetensors"
    (folder / SINGLE).rename(outside)
    (folder / SINGLE).symlink_to(outside)


def loop(folder):
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(SINGLE)


def absent(folder):
    shard(folder)
    (folder / "model-00001-of-00004.safetensors").unlink()


def escape(folder):
    shutil.copy(folder / SINGLE, folder.parent / "up.safetensors")
    where = dict.fromkeys(load_file(folder / SINGLE), "../up.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))


def transpose(folder):
    def change(found):
        name = "model.layers.0.mlp.up_proj.weight"
        found[name] = np.ascontiguousarray(found[name].T)

    change_tensors(folder, change)


def integers(folder):
    change_tensors(
        folder,
        lambda f: f.update({"model.norm.weight": np.ones(32, np.int32)}),
    )


def infinite(folder):
    change_tensors(
        folder,
        lambda f: f.update({"model.norm.weight": np.full(32, np.inf, np.float32)}),
    )


WRONG = {
    "nothing there": (lambda f: shutil.rmtree(f), "nothing there"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no tensors": (lambda f: (f / SINGLE).unlink(), r"has no \*.safetensors"),
    "pickle": (pickle, "pytorch_model.bin.*may run code.*save_pretrained"),
    "truncated": (truncate, "model.safetensors: expected an intact"),
    "10 GB header": (
        lambda f: header(f / SINGLE, "{}", length=10 * 10**9),
        "expected an intact safetensors file",
    ),
    "overlap": (overlap, "expected an intact safetensors file"),
    "link": (link, "is a link out of the directory"),
    "link to itself": (loop, "model.safetensors: expected a file; got a broken link"),
    "absent shard": (absent, "has no model-00001-of-00004.safetensors"),
    "index outside": (escape, "up.safetensors: expected a file of the directory"),
    "transposed": (transpose, r"up_proj.weight.*\(88, 32\).*\(32, 88\), transposed"),
    "integers": (integers, "model.norm.weight: expected one of F64.*got I32"),
    "infinite": (
        infinite,
        "model.norm.weight: expected finite values; got 32 of 32 that are not",
    ),
    "generation": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json: not JSON",
    ),
    "ends": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "x"}'),
        "generation_config.json: eos_token_id: expected token ids",
    ),
    "beside": (
        lambda f: (f / "special_tokens_map.json").write_text("[]"),
        "special_tokens_map.json: expected an object; got list",
    ),
    "unknown type": (
        lambda f: change_config(f, model_type="lama"),
        "model_type is not supported: got 'lama'; try: 'llama' ",
    ),
    "no type": (lambda f: change_config(f, model_type=...), "got nothing"),
    "unknown field": (
        lambda f: change_config(f, quantization_config={"bits": 4}),
        "quantization_config is not supported",
    ),
    "wrong kind": (
        lambda f: change_config(f, hidden_size="32"),
        "hidden_size: expected a whole number above 0; got '32'",
    ),
    "two rotations": (
        lambda f: change_config(f, rope_scaling={"type": "dynamic", "factor": 2.0}),
        "rope_scaling: expected rope_parameters alone",
    ),
    "too wide": (
        lambda f: change_config(f, hidden_size=10**12),
        "hidden_size: expected a number of at most 31 bits; got 1000000000000",
    ),
    "wide": (
        lambda f: change_config(f, hidden_size=10**9),
        r"embed_tokens.weight: expected \(\d+, 1000000000\)",
    ),
    "the text part": (
        lambda f: change_config(f, model_type="gemma3"),
        "model_type is not supported: got 'gemma3'; try: 'gemma3_text' ",
    ),
    "no rotation": (
        lambda f: change_config(
            f, rope_parameters={"rope_type": "default", "rope_theta": 0}
        ),
        "rope_theta: expected a number above 0; got 0",
    ),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "huge": (lambda f: change_config(f, num_hidden_layers=2**30), "layers: expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_directory_is_one_line(name, tmp_path, capsys):
    damage, line = WRONG[name]
    damage(copied("llama", tmp_path / "x"))
    out = tmp_path / "run"
    before = sorted(p.name for p in tmp_path.iterdir())
    assert cli.main(["import", str(tmp_path / "x"), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert re.search(line, told), told
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_pickle_is_named_alone_as_well(tmp_path, capsys):
    (tmp_path / "weights.pt").write_bytes(b"x")
    out = tmp_path / "run"
    assert cli.main(["import", str(tmp_path / "weights.pt"), "--out", str(out)]) == 2
    assert "other formats may run code when read" in capsys.readouterr().err
    assert not out.exists()


def test_a_directory_that_is_there_stays_as_it_is(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("x")
    path = str(GOLDENS / "llama")
    assert cli.main(["import", path, "--out", str(taken)]) == 2
    run = tmp_path / "run"
    import_run(GOLDENS / "llama", run)
    assert cli.main(["export", str(run), "--out", str(taken)]) == 2
    assert capsys.readouterr().err.count("expected a new directory") == 2
    assert os.listdir(taken) == ["mine"]


def test_another_axis_of_a_mesh_is_named():
    with pytest.raises(ReslabError, match="mesh has no axis 'tensors': try: 'tensor'"):
        load(GOLDENS / "llama", mesh={"tensors": 2})


def test_no_axis_of_a_mesh_is_empty(tmp_path, capsys):
    out = tmp_path / "run"
    for size in (0, -2):
        options = ["--out", str(out), "--set", f"mesh.tensor={size}"]
        assert cli.main(["import", str(GOLDENS / "llama"), *options]) == 2
        assert "mesh.tensor: expected at least 1, or -1 for" in capsys.readouterr().err
    assert not out.exists()


def test_a_checkpoint_is_no_run_before_its_import(capsys):
    assert cli.main(["eval", str(GOLDENS / "llama")]) == 2
    assert "try: `reslab import`" in capsys.readouterr().err


def test_the_checkpoint_decides_its_fields(tmp_path, capsys):
    command = ["import", str(GOLDENS / "llama"), "--out", str(tmp_path / "run")]
    assert cli.main([*command, "--set", "model.norm=layer"]) == 2
    assert "that the checkpoint does not decide" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


CHANGED = {
    "residual": ("hyper(streams=2)", "as llama, model.residual: expected 'plain'"),
    "placement": (["post"] * 3, "as llama, model.placement of layer 0: expected 'pre'"),
    "norm": (["rms"] * 2 + ["layer"], "as llama, model.norm of layer 2"),
    "ffn": (["geglu(hidden=88)"] * 3, "as llama, model.ffn of layer 0"),
    "logit_softcap": (3.0, "as llama, model.logit_softcap"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_design_of_no_class_is_named_by_its_part(name):
    config = Source(GOLDENS / "llama").config
    family = family_of(config)
    value, line = CHANGED[name]
    wanted = family.fill(family.known(config)) | {name: value}
    with pytest.raises(ReslabError, match=f"no class .* {line}"):
        closest(wanted, config, 7)


def designed(name):
    """The design of a tiny config of a published model."""
    config = configs.load(f"{name}:tiny")
    shapes, blocks = layout(divided_setup(config, ONE))
    return resolved(dict(configs.flatten(config)), shapes, blocks)


@pytest.mark.parametrize("name", ["gpt2", "qwen3_next", "recurrent_gemma"])
def test_a_config_of_ones_own_has_a_class(name):
    """Sizes that it leaves open are those of its parameters."""
    family, written = closest(designed(f"configs/frontier/{name}.py"), None, 64)
    assert family.model_type == name == written["model_type"]


def test_the_case_that_comes_nearest_says_what_differs():
    wanted = designed("configs/frontier/recurrent_gemma.py")
    wanted["mixer"] = [
        spec.replace("window=32", "window=32, softcap=9.0") for spec in wanted["mixer"]
    ]
    line = (
        "as recurrent_gemma, model.mixer of layer 2: softcap of attention: expected 0"
    )
    with pytest.raises(ReslabError, match=line):
        closest(wanted, None, 64)


@pytest.mark.conformance
def test_an_export_names_the_part_that_no_class_has(tmp_path, small_config_run):
    with pytest.raises(ReslabError, match=r"no class .*model.post_embedding_norm"):
        export_run(small_config_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
