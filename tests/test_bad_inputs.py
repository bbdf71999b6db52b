"""Requests that cannot be carried out: each costs one line and exit 2, nothing else.

One table of everything that a person can get wrong. A row is a command line and words
of the one line that it is answered with. Whatever it wrote would be found.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import sys

import pytest

from reslab.cli import main
from reslab.core import config as configs
from reslab.train.run import Run

SMALL = str(pathlib.Path(__file__).with_name("small.py"))


def train(*sets, options=("--run", "run")):
    flags = [part for text in sets for part in ("--set", text)]
    return ["train", "--config", SMALL, *options, *flags]


# Fields of a config, as `--set`: the fields, and words of the answer.
CONFIG = {
    "unknown field": (["model.dpth=3"], "unknown field 'model.dpth'", "model.depth"),
    "unknown group": (["modle.depth=3"], "unknown field 'modle.depth'"),
    "not a field": (["model=3"], "'model' is a group of fields"),
    "no value": (["model.depth"], "expected field=value"),
    "float for int": (["model.depth=1.5"], "model.depth: expected int; got 1.5"),
    "text for int": (["model.depth=four"], "model.depth: expected int; got 'four'"),
    "bool for int": (["model.depth=True"], "model.depth: expected int"),
    "text for bool": (["model.tie_embeddings=maybe"], "expected bool"),
    "infinite float": (["optim.clip=1e999"], "optim.clip: expected float"),
    "int for spec": (["model.norm=3"], "model.norm: expected str"),
    "ints for specs": (["model.mixer=(1,2)"], "model.mixer: expected spec strings"),
    "unknown variant": (["model.norm=rsm"], "unknown norms 'rsm'", "'rms'"),
    "unknown module": (["model.norm=no.such.norm"], "no module named 'no'"),
    "unknown argument": (["model.norm=rms(eps=1)"], "no argument 'eps'", "epsilon"),
    "wrong argument": (["model.residual=hyper(streams=2.5)"], "streams: expected int"),
    "bad argument": (["model.residual=hyper(streams=0)"], "expected at least 1"),
    "bad loops": (["model.stack=looped(loops=0)"], "loops: expected at least 1"),
    "unique layers": (
        ["model.stack=recursive(unique=3)"],
        "unique: expected a divisor of model.depth (2)",
    ),
    "heads of an anchor": (
        ["model.stack=cart(heads=3)", "model.depth=3"],
        "stacks 'cart': heads: expected a divisor of the width (32)",
    ),
    "cores of passes": (
        ["model.stack=cart(loops=3,shares_core=False)", "model.depth=4"],
        "a multiple of loops (3) between prelude and coda",
    ),
    "an unknown task": (
        ["model.linear=lora(tasks=('a','b'),task='c')"],
        "linears 'lora': task: expected one of a, b, or its number; got 'c'",
    ),
    "too much speed": (
        ["model.stack=unified_skipping(speedup=2.0)"],
        "stacks 'unified_skipping': speedup: expected at most 1",
    ),
    "no budget of layers": (
        ["model.stack=dr_llm(budget=-2.0)"],
        "budget: expected",
    ),
    "layers at once": (
        ["model.stack=newton(parallel=9)"],
        "stacks 'newton': parallel: expected at most 2",
    ),
    "no passes": (["model.stack=act(loops=0)"], "loops: expected at least 1"),
    "no rate": (["model.stack=ponder(rate=0.0)"], "rate: expected above 0"),
    "history of halting": (
        ["model.stack=act", "model.residual=attnres"],
        "a mean of what several passes wrote",
    ),
    "no core": (["model.stack=huginn"], "model.depth: expected above 1 + 1"),
    "malformed spec": (["model.norm=rms("], "malformed spec"),
    "positional spec": (["model.residual=hyper(4)"], "malformed spec"),
    "expression in spec": (["model.norm=rms(epsilon=2**3)"], "malformed spec"),
    "heads": (["model.mixer=attention(heads=3)"], "a divisor of the width (32)"),
    "kv heads": (["model.mixer=attention(heads=4,kv_heads=3)"], "a divisor of heads"),
    "mixer both ways": (
        ["model.mixer=mamba2(is_bidirectional=True)"],
        "reads later tokens: expected a causal mixer",
    ),
    "grid of text": (["model.mixer=manhattan"], "reads later tokens"),
    "series with a gap": (
        ["model.name=forecaster(horizon=1)", "data.source=csv(path='gap.csv')"],
        "gap.csv: line 3, column 'b'",
        "got a missing value",
    ),
    "series of text": (
        ["model.name=forecaster(horizon=1)", "data.source=csv(path='text.csv')"],
        "text.csv: line 2, column 'b'",
        "got 'high'",
    ),
    "series too short": (
        ["model.name=forecaster(horizon=400)", "data.source=waves(steps=100)"],
        "400 held out",
    ),
    "recurrent block": (
        ["model.block=recurrent_transformer", "model.mixer=attention(window=4)"],
        "expected attention of as many key heads",
    ),
    "latent heads": (["model.mixer=latent_attention(heads=5)"], "width (32)"),
    "retention heads": (["model.mixer=retention(heads=32)"], "half the width (16)"),
    "rg_lru heads": (["model.mixer=rg_lru(heads=5)"], "a divisor of the channels"),
    "mamba2 heads": (["model.mixer=mamba2(heads=5)"], "expansion * width"),
    "delta heads": (["model.mixer=gated_delta(heads=5)"], "3/4 of the width"),
    "key heads": (["model.mixer=kda(heads=4,key_heads=3)"], "a divisor of heads (4)"),
    "kda heads": (["model.mixer=kda(heads=5)"], "a divisor of the width (32)"),
    "chunk": (["model.mixer=delta(chunk=24)"], "chunk: expected a power of two"),
    "large chunk": (
        ["model.mixer=delta(chunk=1024)"],
        "chunk: expected at least 0 and",
    ),
    "powers in a chunk": (
        ["model.mixer=gated_delta(heads=2,inverse='neumann',chunk=32)"],
        "chunk at most 16: with keys alike, its error in float32 is 6e-5",
    ),
    "powers of negative ones": (
        [
            "model.mixer=delta(inverse='recursive',chunk=16,"
            "allow_negative_eigenvalues=True)"
        ],
        "whose error is 8e-3",
    ),
    "inverse": (["model.mixer=delta(inverse='neuman')"], "inverse: expected 'block'"),
    "decay below range": (
        ["model.mixer=kda(lower_bound=-6.0)"],
        "lower_bound: expected at least -5 and at most 0",
    ),
    "value residual": (
        ["model.mixer=attention(heads=2,value_path='value_residual(form=1)')"],
        "value_residual': form: expected 'learned'",
    ),
    "odd rope": (["model.mixer=attention(heads=2,head_dim=5)"], "head_dim"),
    "alpha": (["model.placement=mix_ln(alpha=1.5)"], "alpha: expected at least 0"),
    "activation": (["model.norm=evonorm_s0"], "contains the activation"),
    "groups": (["model.norm=group(groups=5)"], "groups"),
    "norm inside": (
        ["model.placement=hybrid", "model.mixer=gated_delta(heads=2)"],
        "puts a norm inside the mixer",
    ),
    "depth": (["model.depth=0"], "model.depth: expected at least 1"),
    "remat": (["model.remat=some"], "model.remat: unknown choice 'some'"),
    "earlier name": (["model.layers=scan"], "try: model.loop"),
    "loop": (["model.loop=scna"], "try: 'scan'"),
    "precision": (["precision.compute=float16"], "precision.compute"),
    "batch": (["data.batch=12"], "data.batch: expected a multiple of the 8 devices"),
    "eval batch": (["eval.batch=12"], "eval.batch: expected a multiple"),
    "accumulate": (["train.accumulate=3"], "train.accumulate: expected a divisor"),
    "length": (["data.length=1000000"], "corpus"),
    "missing text": (["data.source=text(path='no.txt')"], "no.txt"),
    "mesh": (["mesh.data=3"], "multiply to the 8 devices", "data=3"),
    "mesh zero": (["mesh.fsdp=0"], "mesh.fsdp: expected at least 1, or -1 for"),
    "undivided parameter": (
        ["mesh.data=1", "mesh.tensor=8"],
        "mesh axis tensor=8",
    ),
    "group": (["optim.groups=(('nothing$', {}),)"], "matches no parameter"),
    "group option": (["optim.groups=(('.', {'rate': 1}),)"], "unknown option 'rate'"),
    "group value": (["optim.groups=(('.', {'freeze': 1}),)"], "freeze: expected bool"),
    "group pattern": (["optim.groups=(('(', {}),)"], "a regular expression"),
    "group form": (["optim.groups=('x',)"], "pairs (pattern, {option: value})"),
    "optimizer": (["optim.name=adam"], "unknown optimizers 'adam'"),
    "schedule": (["optim.schedule=cosine(warmup=-9)"], "'cosine': warmup"),
    "decay": (["optim.schedule=wsd(decay=2.0)"], "'wsd': decay"),
    "source": (["data.source=stdlb"], "try: 'stdlib'"),
    "writer": (["train.writers=('tensorbord',)"], "try: 'tensorboard'"),
    "seed": (["seed=-1"], "seed: expected at least 0"),
    "large seed": (
        ["seed=99999999999"],
        "0 and below 4,294,967,296",
    ),
    "no evaluation": (["eval.batches=0"], "eval.batches: expected at least 1"),
    "no checkpoints": (["train.keep_checkpoints=0"], "expected at least 1"),
    "negative clip": (["optim.clip=-1"], "optim.clip: expected at least 0"),
    "negative chunks": (["model.vocabulary_chunks=-1"], "expected at least 0"),
    "no heads": (["model.mixer=gated_delta(heads=0)"], "heads: expected at least 1"),
    "negative head": (["model.mixer=gated_delta(head_dim=-1)"], "head_dim: expected"),
    "negative hidden": (["model.ffn=swiglu(hidden=-5)"], "hidden: expected at least 0"),
    "reserved dtype": (["model.norm=rms(param_dtype='x')"], "is not set in a spec"),
    "reserved decay": (["optim.name=adamw(weight_decay=0.5)"], "weight_decay is not"),
    "int for a spec": (["model.mixer=attention(position=3)"], "position: expected str"),
    "float64": (["precision.compute=float64"], "float64 is switched off"),
    "shadowed group": (
        ["optim.groups=(('kernel', {}), ('query', {}), ('.', {}))"],
        "'query' decides for no parameter",
    ),
    "short validation": (["data.source=text(path='short.txt')", "data.length=64"], ""),
    "missing writer": (["train.writers=('wandb',)"], "reslab[track]"),
}
CONFIG |= {
    "sequence axis": (["mesh.sequence=3"], "multiply to the 8 devices", "sequence=3"),
    "undivided tokens": (
        ["mesh.data=1", "mesh.sequence=8", "data.length=20"],
        "data.length: expected a multiple of mesh.sequence=8",
    ),
    "slices": (["mesh.dcn_data=2"], "mesh.dcn_data: expected the 1 slices"),
    "no slices": (["mesh.dcn_data=0"], "mesh.dcn_data: expected at least 1"),
    "two free axes": (["mesh.data=-1", "mesh.fsdp=-1"], "set one axis to -1"),
    "mesh of halves": (["mesh.tensor=0.5"], "mesh.tensor: expected int"),
    "mesh of words": (["mesh.fsdp=all"], "mesh.fsdp: expected int; got 'all'"),
    "pixels as tokens": (
        ["model.name=resnet", "data.source=digits", "mesh.data=4", "mesh.sequence=2"],
        "",
    ),
    "a missing bucket": (["data.source=text(path='gs://bucket/x')"], "mount the"),
    "no tokens": (["data.source=tokens(path='nowhere')"], "reslab data tokenize"),
    "no record": (["data.source=array_record(path='nowhere')"], "nowhere"),
    "no lines": (["data.source=jsonl(path='nowhere')"], "nowhere"),
    "no mixture": (["data.source=mixture"], "specs of sources"),
    "weights": (
        ["data.source=mixture(sources=('stdlib','synthetic'), weights=(1,))"],
        "2 positive numbers",
    ),
    "a glob of nothing": (["data.source=text(path='*.none')"], "at least one file"),
    "no tokenizer": (["data.tokenizer=huggingface(path='no.json')"], "no.json"),
    "unknown tokenizer": (["data.tokenizer=bpe"], "unknown tokenizers 'bpe'"),
    "workers": (["data.workers=-1"], "data.workers: expected at least 0"),
    "replay": (["data.replay=0.5"], "a run to continue from"),
    "all replayed": (["data.replay=1.0"], "at least 0 and below 1"),
    "bad step": (["train.on_bad_step=stop"], "on_bad_step"),
    "bad step's argument": (["train.on_bad_step=skip(sigma=0)"], "sigma"),
    "probe": (["probes.names=('dream',)"], "unknown probes 'dream'"),
    "writers": (["train.writers=tensorboard"], "train.writers: expected tuple"),
    "kernels": (["model.kernels=pallas"], "a TPU for 'pallas'"),
    "unknown kernels": (["model.kernels=cuda"], "model.kernels"),
    "block": (["model.block=standart"], "try: 'standard'"),
    "stack": (["model.stack=loop"], "unknown stacks 'loop'"),
    "linear": (["model.linear=densse"], "try: 'dense'"),
    "position": (["model.position=rop"], "try: 'rope'"),
    "ffn": (["model.ffn=swigl"], "try: 'swiglu'"),
    "mixer": (["model.mixer=attn"], "unknown mixers 'attn'"),
    "residual": (["model.residual=hypr"], "try: 'hyper'"),
    "model": (["model.name=llm"], "unknown models 'llm'"),
    "a path for a spec": (["model.norm=/etc/passwd"], ""),
    "code for a spec": (["model.norm=__import__('os').getcwd()"], ""),
    "nothing for a spec": (["model.placement=''"], ""),
    "no specs": (["model.mixer=()"], "expected spec strings"),
    "negative steps": (["train.steps=-5"], "train.steps: expected at least 1"),
    "no rows": (["data.batch=0"], "data.batch: expected at least 1"),
    "continue from nothing": (["train.continue_from=nowhere"], "nowhere"),
}

CONFIG |= {
    "large block": (
        ["model.residual=attnres(block=5)"],
        "block: expected at most the model's 4",
    ),
    "window in depth": (["model.residual=attnres(window=-1)"], "window: expected at"),
    "no values": (
        ["model.mixer=gated_delta(heads=2,value_path='value_residual')"],
        "no argument 'value_path'",
    ),
    "chains": (
        ["model.linear=chain(chains=(1,2))"],
        "whose sum divides the width",
    ),
    "table bits": (["model.linear=memory_lookup(bits=40)"], "bits: expected"),
    "rank": (["model.linear=noble(rank=0)"], "rank: expected at least 1"),
    "no interval": (["optim.name=soap(every=0)"], "every: expected at least 1"),
    "no spectra": (["optim.name=heavy_tail(every=0)"], "every: expected at least 1"),
    "long table": (
        ["optim.name=muon(ns_steps=2,ns_coeffs=((1,0,0),(1,0,0),(1,0,0)))"],
        "at most one row per step (2)",
    ),
}

CONFIG |= {
    "keys that are no text": (["model.vocabulary_chunks={{}: 1}"], "expected int"),
    "more than infinite": (["optim.clip=1e999999"], "optim.clip: expected float"),
    "many digits": ([f"train.steps={'9' * 6000}"], "train.steps: expected int"),
    "depth without end": ([f"model.depth={'9' * 30}"], "model.depth: expected int"),
    "great depth": (
        ["model.depth=1000000"],
        "1 and at most 16,384",
    ),
    "many loops": (["model.stack=looped(loops=10000000)"], "at most 16,384 layers"),
    "many streams": (["model.residual=hyper(streams=100000000)"], "at most 256"),
    "large batch": (["data.batch=10000000000"], "not enough memory", "an estimate of"),
    "large evaluation": (["eval.batch=10000000000"], "not enough memory", "eval.batch"),
    "great width": (["model.features=200000"], "not enough memory", "optimizer state"),
    "many devices": (
        ["mesh.cpu_devices=100000"],
        "mesh.cpu_devices: expected at most",
    ),
    "a dictionary in a spec": (["model.norm=rms(epsilon={{}: 1})"], "malformed spec"),
    "a number in a spec": ([f"model.norm=rms(epsilon={'9' * 400})"], "malformed spec"),
    "deep brackets": ([f"model.norm=rms(epsilon={'(' * 5000}"], "malformed spec"),
    "a long name": ([f"model.norm={'x' * 6000}"], "unknown norms"),
    "a null byte": (["model.norm=rms\0"], ""),
    "half a character": (["model.norm=rms\udce9"], ""),
}

# Whole command lines. {files} is a directory with the files below, {run} a finished
# run and {bad} one of the directories that are not.
COMMANDS = {
    "nothing": ([], "required: command"),
    "unknown command": (["trian"], "invalid choice: 'trian'"),
    "no config": (["train"], "--config --from-run is required"),
    "two configs": (["train", "--config", "tiny", "--from-run", "x"], "not allowed"),
    "unknown option": (["train", "--config", "tiny", "--steps", "3"], "--steps"),
    "watchdog of words": (["train", "--config", "tiny", "--watchdog", "x"], "float"),
    **{
        f"watchdog {value}": (["train", "--config", "tiny", "--watchdog", value], words)
        for value, words in (
            ("nan", "expected a finite number"),
            ("-1", "at least 0"),
            ("inf", "expected a finite number"),
        )
    },
    "a large seed": (["generate", "{run}", "--seed", "9" * 20], "--seed: expected"),
    "a negative width": (["show", "blocks/reversible", "--width", "-1"], "at least 1"),
    "an odd width": (
        ["show", "value_paths/shared_values", "--width", "3"],
        "a width that its parts divide",
    ),
    "a relative name": (["show", "norms/.x"], "the name of a variant"),
    "a name that no file has": (["train", "--config", "x" * 300], "at most 255 bytes"),
    "a path of another encoding": (
        ["train", "--config", "tiny", "--run", "r\udce9n"],
        "a name in UTF-8",
    ),
    "a prompt that is no text": (
        ["generate", "{run}", "--prompt", "\ud800"],
        "prompt: expected text",
    ),
    **{
        f"{name} {verb[0]}": ([*verb, f"{{bad}}/{name}"], *words)
        for name, *words in (
            ("latin", "config.json: not JSON", "UTF-8"),
            ("cut", "result.json: not JSON"),
            ("listed", "environment: expected an object"),
        )
        for verb in (["show"], ["report"], ["train", "--from-run"])
        # Another run would be trained from it.
        if (name, verb[0]) != ("cut", "train")
    },
    "cut train": (
        ["train", "--from-run", "{bad}/cut", "--run", "{bad}/cut"],
        "result.json: not JSON",
    ),
    "unknown config": (["train", "--config", "tinny"], "no config 'tinny'", "'tiny'"),
    "no such file": (["train", "--config", "no/such/tiny.py"], "no/such/tiny.py"),
    "syntax": (["train", "--config", "{files}/syntax.py"], "syntax error in line 1"),
    "no get_config": (["train", "--config", "{files}/other.py"], "get_config()"),
    "a number": (["train", "--config", "{files}/number.py"], "a ConfigDict"),
    "raises": (["train", "--config", "{files}/raises.py"], "line 2", "ZeroDivision"),
    "unknown field in a file": (
        ["train", "--config", "{files}/field.py"],
        "line 4: got unknown field 'stpes'; did you mean 'steps'?",
    ),
    "wrong type in a file": (["train", "--config", "{files}/type.py"], "model.depth"),
    "a binary config": (["train", "--config", "{files}/binary.py"], "binary.py"),
    "half a coordinator": (
        train(options=("--coordinator", "here:1")),
        "belong together",
    ),
    "coordinator without port": (
        train(options=("--coordinator", "x", "--processes", "2", "--process", "0")),
        "HOST:PORT",
    ),
    "process of too few": (
        train(options=("--coordinator", "x:1", "--processes", "2", "--process", "2")),
        "--process: expected 0 to 1",
    ),
    "no processes": (
        train(options=("--coordinator", "x:1", "--processes", "0", "--process", "0")),
        "--processes: expected at least 1",
    ),
    "run in a file": (
        train(options=("--run", "{files}/other.py/run")),
        "a directory that can be written",
    ),
    "lost checkpoints": (train(options=("--run", "{bad}/lost")), "checkpoints is gone"),
    "run is a file": (train(options=("--run", "{files}/other.py")), "other.py"),
    "another config": (
        train("seed=7", options=("--run", "{run}")),
        "holds another config",
        "different seed",
    ),
    "repeat nothing": (["train", "--from-run", "nowhere"], "expected a run directory"),
    "continue nothing": (
        train(options=("--continue-from", "nowhere")),
        "expected a run directory",
    ),
    **{
        f"{verb} {name}": ([verb, f"{{bad}}/{name}"], *words)
        for verb in ("eval", "generate", "inspect")
        for name, *words in (
            ("nowhere", ""),
            ("empty", "expected a run directory"),
            ("young", "no checkpoint"),
            ("half", "not JSON"),
        )
    },
    "from a list": (["train", "--from-run", "{bad}/list"], "expected an object"),
    "from half a config": (["train", "--from-run", "{bad}/half"], "not JSON"),
    "from a newer one": (
        ["train", "--from-run", "{bad}/newer"],
        "unknown field 'extra'",
    ),
    "from an older one": (
        ["train", "--from-run", "{bad}/older"],
        "has no field 'seed'",
    ),
    "an edited one": (["eval", "{bad}/edited"], "was changed since the run began"),
    "one of another width": (
        ["generate", "{bad}/wider"],
        "was trained with a",
    ),
    "no prompt": (["generate", "{run}", "--prompt", ""], "prompt: expected"),
    "no length": (["generate", "{run}", "--length", "0"], "length: expected at least"),
    "cold": (["generate", "{run}", "--temperature", "-1"], "temperature: expected"),
    "negative top k": (["generate", "{run}", "--top-k", "-1"], "--top-k: expected"),
    "no top p": (["generate", "{run}", "--top-p", "0"], "top_p: expected above 0"),
    "no samples": (["generate", "{run}", "--samples", "0"], "--samples: expected"),
    "many words": (["generate", "{run}", "--length", "x"], "invalid int value: 'x'"),
    "unknown transform": (["transform", "melt", "{run}", "--out", "o"], "'melt'"),
    "transform nothing": (
        ["transform", "fuse_norm", "no", "--out", "o"],
        "expected a run directory",
    ),
    "transform onto a run": (
        ["transform", "fuse_norm", "{run}", "--out", "{run}"],
        "expected a new directory",
    ),
    "transform of another norm": (
        ["transform", "pre_ln_to_pre_rms", "{run}", "--out", "o"],
        "model.norm: expected layer",
    ),
    "transform of what stays": (
        ["transform", "fuse_norm", "{run}", "--out", "o"],
        "model.norm: expected batch or",
    ),
    "unique layers of a run": (
        ["transform", "to_recursive(unique=5)", "{run}", "--out", "o"],
        "unique: expected a divisor of model.depth",
    ),
    "no budget": (
        ["search", "paths", "{run}", "--simulations", "0"],
        "--simulations: expected at least 1",
    ),
    "a path of no layer": (
        ["transform", "to_path(layers=(0, 7))", "{run}", "--out", "o"],
        "stacks 'path': layers: expected numbers of layers, from 0 to 1; got 7",
    ),
    "an empty path": (
        ["transform", "to_path(layers=())", "{run}", "--out", "o"],
        "to_path: layers: expected at least one",
    ),
    "a task of no factors": (
        ["transform", "choose_task(task='code')", "{run}", "--out", "o"],
        "choose_task: model.linear: expected lora with tasks",
    ),
    "routers without paths": (
        ["transform", "add_routers", "{run}", "--out", "o"],
        "add_routers: labels: expected a file of `reslab search paths`",
    ),
    "no factors": (
        ["transform", "merge_lora", "{run}", "--out", "o"],
        "model.linear: expected lora",
    ),
    "forward shares": (
        ["transform", "share_kv(share=(1, 1))", "{run}", "--out", "o"],
        "expected the layer itself or an earlier one",
    ),
    "transform of images": (
        ["transform", "fuse_norm", "{bad}/images", "--out", "o"],
        "model.name: expected lm",
    ),
    "transform nowhere": (["transform", "fuse_norm", "{run}"], "--out"),
    "unknown probe": (["inspect", "{run}", "--probe", "dream"], "unknown probes"),
    "step of no checkpoint": (["inspect", "{run}", "--step", "77"], "77"),
    "unknown family": (["list", "norm"], "unknown family 'norm'", "'norms'"),
    "unknown variant to show": (["show", "norms/rsm"], "unknown norms 'rsm'"),
    "unknown thing to show": (["show", "tinny"], "no config 'tinny'"),
    "no study": (["sweep", "nowhere.py"], "nowhere.py"),
    "not a study": (["sweep", "{files}/other.py"], "other.py"),
    "report of nothing": (["report", "nowhere"], "nowhere"),
    "report of an empty one": (["report", "{bad}/empty"], "empty"),
    "unknown bench": (["bench", "all"], "invalid choice: 'all'"),
    "unknown operation": (["bench", "ops", "--operation", "adding"], "'adding'"),
    "unknown chip to bench": (["bench", "ops", "--target", "v9"], "v9"),
    "unknown shape": (["bench", "ops", "--shape", "huge"], "huge"),
    "unknown dtype": (["bench", "ops", "--dtype", "int"], "dtype"),
    "bench to nowhere": (
        ["bench", "ops", "--out", "nowhere/x.csv"],
        "a directory that can be written",
    ),
    "unknown drill": (["drill", "--only", "kil"], "unknown row 'kil'", "'kill'"),
    "tokenize what is not there": (
        ["data", "tokenize", "text(path='no')", "--out", "o"],
        "does not exist",
    ),
    "tokenize with what is not there": (
        ["data", "tokenize", "synthetic", "--tokenizer", "bpe", "--out", "o"],
        "unknown tokenizers 'bpe'",
    ),
    "tokenize onto what is there": (
        ["data", "tokenize", "synthetic", "--out", "{files}"],
        "expected a new directory",
    ),
    "tokenize into a file": (
        ["data", "tokenize", "synthetic", "--out", "{files}/other.py/o"],
        "other.py/o",
    ),
    "tokenize tokens": (
        ["data", "tokenize", "tokens(path='{files}')", "--out", "o"],
        "documents to tokenize",
    ),
    "mistaken work on data": (["data", "compress", "synthetic"], "'compress'"),
    **{
        f"corpus of {name}": (
            train(f"data.source={kind}(path='{{files}}/{name}')"),
            name,
            *words,
        )
        for kind, name, *words in (
            ("text", "nothing.txt"),
            ("text", "binary.txt", "is binary"),
            ("text", "latin.txt", "is not UTF-8"),
            ("jsonl", "half.jsonl", "line 1"),
            ("jsonl", "other.jsonl", "line 1", "'text'"),
            ("jsonl", "broken.jsonl.gz"),
            ("array_record", "other.py"),
            ("tokens", "other.py"),
        )
    },
    **{
        f"slice {name!r}": (["compile", "tiny", "--topology", name], *words)
        for name, *words in (
            ("v9:2x2", "one of tpu7x, v4, v5e, v5p, v6e"),
            ("v5:2x2", "try: 'v5"),
            ("v5e", "v5e:2x2"),
            ("v5e:2x2x1", "v5e:2x2"),
            ("v5p:2x2", "v5p:2x2x2"),
            ("v5e:0x2", "v5e:2x2"),
            ("v5e:2xtwo", "v5e:2x2"),
            ("0xv5e:2x2", "0xv5e:2x2"),
            ("", "one of tpu7x, v4"),
        )
    },
    "compile nothing": (["compile", "nothing"], "no config 'nothing'"),
    "compile for serving": (["compile", "tiny", "--what", "serve"], "'serve'"),
    "compile twice": (["compile", "tiny", "tiny"], "tiny is there twice"),
    "compile without libtpu": (["compile", "tiny"], "'libtpu'", "reslab[tpu]"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Files and directories that the table names."""
    files, bad = (tmp_path_factory.mktemp(name) for name in ("files", "bad"))
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main(train(options=("--run", str(run)))) == 0
    use_base = (
        "from reslab.core.config import load\n"
        "def get_config():\n    config = load('base')\n"
    )
    for name, text in {
        "syntax.py": b"def get_config(:\n",
        "other.py": b"x = 1\n",
        "number.py": b"def get_config():\n    return 3\n",
        "raises.py": b"def get_config():\n    return 1 / 0\n",
        "field.py": f"{use_base}    config.train.stpes = 7\n    return config\n",
        "type.py": f"{use_base}    config.model.depth = 1.5\n    return config\n",
        "binary.py": b"\x00\xff\xfe",
        "nothing.txt": b"",
        "binary.txt": b"\x00\x01\x02",
        "latin.txt": b"\xff\xfe\xff",
        "half.jsonl": b'{"text": "a',
        "other.jsonl": b'{"body": "a"}\n',
        "broken.jsonl.gz": b"this is no archive",
    }.items():
        (files / name).write_bytes(text.encode() if isinstance(text, str) else text)
    config = (run / "config.json").read_text()
    fields = json.loads(config)
    older = {key: value for key, value in fields.items() if key != "seed"}
    wider = configs.from_json(config, "config")
    configs.update(wider, [("model.features", 64)])
    for name, text in {
        "empty": None,
        "young": config,
        "half": "{",
        "list": "[]",
        "newer": json.dumps(fields | {"extra": 1}),
        "older": json.dumps(older),
        "wider": configs.canonical_json(wider),
        "images": configs.canonical_json(configs.load("digits_resnet")),
    }.items():
        (bad / name).mkdir()
        if text is not None:
            (bad / name / "config.json").write_text(text)
    (bad / "wider" / "checkpoints").symlink_to(run / "checkpoints")
    # Under way, with what a save that failed has left of its checkpoints.
    shutil.copytree(run, bad / "lost")
    (bad / "lost" / "result.json").unlink()
    shutil.rmtree(bad / "lost" / "checkpoints")
    (bad / "lost" / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    for name in ("latin", "cut", "listed"):
        shutil.copytree(run, bad / name)
    (bad / "latin" / "config.json").write_bytes(config.encode() + b"\xff")
    (bad / "cut" / "result.json").write_text('{"eval_loss": 4.')
    record = json.loads((run / "run.json").read_text()) | {"environment": [1]}
    (bad / "listed" / "run.json").write_text(json.dumps(record))
    shutil.copytree(run, bad / "edited")
    (bad / "edited" / "config.json").write_text(
        config.replace('"seed": 0', '"seed": 1')
    )
    return {"files": files, "bad": bad, "run": run}


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Checks that a command line is refused in one line, with nothing written."""
    # Installed, it would look for the bucket for most of a minute.
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def check(arguments, *expected):
        before = sorted(tmp_path.rglob("*"))
        try:
            code = main(arguments)
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        assert code == 2, err
        assert len(err.splitlines()) == 1, err
        assert "Traceback" not in out + err
        for words in expected:
            assert words in err
        assert sorted(tmp_path.rglob("*")) == before

    return check


def without(monkeypatch, *packages):
    """Makes packages look as if they were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name in packages else find(name, *rest),
    )


def test_the_table_is_long():
    assert len(CONFIG) + len(COMMANDS) >= 200


@pytest.mark.parametrize("mistake", CONFIG)
def test_mistakes_in_the_config(mistake, refused, tmp_path, monkeypatch):
    (tmp_path / "here" / "short.txt").write_text("a short text " * 40)
    (tmp_path / "here" / "gap.csv").write_text("date,a,b\n1,2,3\n2,4,\n")
    (tmp_path / "here" / "text.csv").write_text("date,a,b\n1,2,high\n")
    without(monkeypatch, "wandb")
    sets, *expected = CONFIG[mistake]
    refused(train(*sets), *expected)


@pytest.mark.parametrize("mistake", COMMANDS)
def test_mistaken_commands(mistake, places, refused, monkeypatch):
    without(monkeypatch, "libtpu")
    arguments, *expected = COMMANDS[mistake]

    def filled(word):
        for name, path in places.items():
            word = word.replace(f"{{{name}}}", str(path))
        return word

    refused([filled(word) for word in arguments], *expected)


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    "options, words",
    [
        (["--topology", "v5e:3x5"], "even sizes"),
        (["--topology", "v5e:2x2", "--set", "mesh.data=3"], "the 4 devices"),
        (["--topology", "2xv5e:2x2"], "mesh.dcn_data: expected the 2 slices"),
        (["--topology", "v5e:2x4", "--set", "data.batch=12"], "a multiple of the 8"),
        (["--topology", "v5e:2x2", "--versus", "model.norm=rsm"], "'rsm'"),
    ],
)
def test_what_does_not_fit_a_slice(options, words, refused):
    pytest.importorskip("libtpu")
    refused(["compile", "tiny", *options], words)


@pytest.mark.conformance
def test_a_corpus_that_changed(refused, tmp_path, capsys):
    corpus = tmp_path / "here" / "corpus.txt"
    corpus.write_text("a man a plan a canal " * 200)
    arguments = train("data.source=text(path='corpus.txt')")
    assert main(arguments) == 0
    capsys.readouterr()
    (tmp_path / "here" / "run" / "result.json").unlink()
    corpus.write_text("a man a plan a canoe " * 200)
    refused(arguments, "the corpus changed since the run began")
    refused(["eval", "run"], "the corpus changed since the run began")
    corpus.write_text("a man a plan a canal " * 200)
    with Run(tmp_path / "here" / "run").lock():
        refused(arguments, "run is in use: got process", str(os.getpid()))
