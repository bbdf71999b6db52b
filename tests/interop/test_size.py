"""A checkpoint of a billion parameters, once in a while: memory and time."""

import json
import os
import resource
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCABULARY = 2048, 5632, 22, 32, 4, 32_000
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


def write(folder):
    random = np.random.default_rng(0)

    def made(*shape):
        values = random.standard_normal(shape, np.float32) * np.float32(0.02)
        return values.astype(ml_dtypes.bfloat16)

    keys = WIDTH // HEADS * KV_HEADS
    shapes = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (keys, WIDTH),
        "self_attn.v_proj": (keys, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (HIDDEN, WIDTH),
        "mlp.up_proj": (HIDDEN, WIDTH),
        "mlp.down_proj": (WIDTH, HIDDEN),
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
    }
    ends = {"lm_head": (VOCABULARY, WIDTH), "model.norm": (WIDTH,)}
    ends["model.embed_tokens"] = (VOCABULARY, WIDTH)
    where = {}
    for layer in range(-1, LAYERS):
        named = {f"model.layers.{layer}.{k}": v for k, v in shapes.items()}
        file = f"model-{layer + 1:05}.safetensors"
        part = {
            f"{name}.weight": made(*shape)
            for name, shape in (named if layer >= 0 else ends).items()
        }
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    index = {"weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


LOAD = """
import sys, time, jax, numpy
from reslab.train.importing import configured, divided_setup, understood
from reslab.train.placing import expected_tensors, placed
found = understood(sys.argv[1])
setup = divided_setup(configured(found))
wanted = expected_tensors(found.source, found.family, setup)
begin = time.perf_counter()
bytes_read = [numpy.fromfile(one, numpy.uint8) for one in sorted(
    {stored.path for stored in found.source.tensors.values()})]
reading = time.perf_counter() - begin
begin = time.perf_counter()
jax.block_until_ready(placed(found.source, wanted, setup))
print(reading, time.perf_counter() - begin)
"""


@pytest.mark.exhaustive
def test_memory_and_time_of_a_billion_parameters(tmp_path):
    folder = tmp_path / "big"
    folder.mkdir()
    write(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size > 2.1e9
    shell = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-m", "reslab", "import", str(folder), "--out"]
    begin = time.perf_counter()
    subprocess.run([*command, str(tmp_path / "run")], check=True, env=shell)
    print(f"import: {time.perf_counter() - begin:.1f} s")
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"peak {peak / 1e9:.2f} GB for {size / 1e9:.2f} GB")
    assert peak < size + 1.5e9
    ratios = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(folder)],
            check=True,
            env=shell,
            capture_output=True,
            text=True,
        )
        reading, placing = map(float, done.stdout.split())
        print(f"read into memory {reading:.1f} s, as parameters {placing:.1f} s")
        ratios.append(placing / reading)
    assert min(ratios) < 2
