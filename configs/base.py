"""The whole schema: every field of a run, with its default, one comment a field.

Variants are named by spec strings, `"name"` or `"name(argument=value)"`;
`reslab list` shows them. Tiled fields also take a tuple of specs, which is repeated
over depth. Beside its default a field tells the family that it names, the words or the
range that it takes, and `since`: its value in configs of versions without it. A
`changeable` field computes nothing else: a run may go on with another value.
"""

from ml_collections import ConfigDict

from reslab.core.schema import changeable, choice, number, parts, plain, spec


def get_config() -> ConfigDict:
    """Returns the schema, whose defaults are a small model on the embedded corpus."""
    config = ConfigDict(type_safe=False)

    # seeds the parameters and the order of the data
    config.seed = number(0, least=0, below=2**32)

    config.model = model = ConfigDict(type_safe=False)
    model.name = spec("lm", "models", since="lm")  # what the parts are put together to
    model.features = number(128, least=1)  # width
    model.depth = number(4, least=1, most=2**14)  # layers with parameters of their own
    # token mixer
    model.mixer = spec("attention(heads=4,qk_norm='rms')", "mixers", is_tiled=True)
    model.ffn = spec("swiglu", "ffns", is_tiled=True)  # feed-forward layer
    model.norm = spec("rms", "norms", is_tiled=True)  # normalization
    model.placement = spec("pre", "placements", is_tiled=True)  # where the norms sit
    # how sublayers form a layer
    model.block = spec("standard", "blocks", is_tiled=True)
    # how the depth stream is read and written
    model.residual = spec("plain", "residuals")
    model.stack = spec("uniform", "stacks")  # how blocks are laid along depth
    model.linear = spec("dense", "linears")  # what a projection is
    model.position = spec("rope", "positions")  # position encoding
    model.tie_embeddings = False  # whether the head is the transposed embedding
    # factor on the initial standard deviation of the head
    model.head_scale = number(1.0, least=0, since=1.0)
    # whether the head adds a bias to every logit
    model.use_head_bias = plain(False, since=False)
    # square maps after embedding, before head
    model.use_embedding_projection = plain(False, since=False)
    # the vocabulary is padded to a multiple of this
    model.vocabulary_multiple = number(8, least=1)
    # parts of the cross-entropy; 0 chooses by size
    model.vocabulary_chunks = number(0, least=0)
    # initial standard deviation of the embedding
    model.embedding_std = number(0.02, least=0)
    # between embedding and first layer; "none" leaves it to the placement
    model.post_embedding_norm = spec("rms", "norms", since="none")
    # factor on the embedded tokens
    model.embedding_scale = number(1.0, above=0, most=10**9, since=1.0)
    # bound of the logits; 0 is none
    model.logit_softcap = number(0.0, least=0, most=10**9, since=0.0)
    model.init_std = number(0.0, least=0)  # of projections; 0 is 1/sqrt(fan in)
    model.scales_output_by_depth = True  # output projections start at 1/sqrt(2 depth)
    # rate on the outputs of sublayers, while training
    model.dropout = number(0.0, least=0, below=1, since=0.0)
    # rate on the embedded tokens, while training
    model.embedding_dropout = number(0.0, least=0, below=1, since=0.0)
    # over layers: "scan", "unroll", or "auto": unrolled on a CPU
    model.loop = choice("auto", "scan", "unroll", was="model.layers")
    # "reference", "pallas", or "auto": where it pays
    model.kernels = choice("auto", "reference", "pallas", since="auto")
    # what backward recomputes: "none", "dots", "full"
    model.remat = choice("none", "dots", "full")

    config.precision = precision = ConfigDict(type_safe=False)
    # dtype of parameters and optimizer state
    precision.parameters = choice("float32", "bfloat16", "float64")
    # dtype of compute; "auto" is by hardware
    precision.compute = choice("auto", "float32", "bfloat16", "float64")

    config.data = data = ConfigDict(type_safe=False)
    data.source = spec("stdlib", "sources")  # where documents come from
    data.tokenizer = spec("bytes", "tokenizers")  # how they become tokens
    data.length = number(128, least=1, most=2**31 - 1)  # tokens in a sequence
    data.batch = number(16, least=1)  # sequences in a step, over all devices
    # processes that prepare batches; 0 is a thread
    data.workers = changeable(number(0, least=0, most=2**10))
    # whether the end of a document is predicted, as the token that begins the next
    data.predicts_end = plain(True, since=False)
    # share of windows from the text of the run that is continued
    data.replay = number(0.0, least=0, below=1, since=0.0)

    config.optim = optim = ConfigDict(type_safe=False)
    optim.name = spec("adamw", "optimizers")  # optimizer
    optim.learning_rate = number(3e-3, least=0)  # at the schedule's peak
    optim.schedule = spec("cosine(warmup=50)", "schedules")  # factor on it over the run
    optim.weight_decay = number(0.1, least=0)  # of the groups that name none
    optim.clip = number(1.0, least=0)  # bound of the global gradient norm; 0 is none
    # (pattern, {method, lr, lr_scale, scaling, schedule, weight_decay, clip, freeze});
    # the first match decides
    optim.groups = (
        ("(kernel|head|embedding)$", {}),
        (".", {"weight_decay": 0.0}),
    )

    config.train = train = ConfigDict(type_safe=False)
    train.task = spec("auto", "tasks", since="auto")  # the loss; "auto" is the model's
    train.steps = number(500, least=1)  # optimizer steps
    # run to start from; "" is none
    train.continue_from = plain("", since="")
    # parts of a batch whose gradients are added up
    train.accumulate = number(1, least=1, most=2**20)
    train.z_loss = number(0.0, least=0)  # factor on the squared log-normalizer
    # factor on the distance of convolutions from orthogonal
    train.orthogonality = number(0.0, least=0, since=0.0)
    # rows or columns of their matrices, or the kernels as matrices
    train.orthogonality_form = choice("rows", "columns", "kernels", since="rows")
    train.log_every = changeable(number(10, least=1))  # steps between metrics
    # steps between checkpoints
    train.checkpoint_every = changeable(number(100, least=1))
    train.keep_checkpoints = changeable(number(3, least=1))  # newest checkpoints kept
    # checkpoints at multiples of this many steps stay; 0 is none
    train.keep_every = changeable(number(0, least=0, since=0))
    # reaction to a non-finite loss or gradient, or a spike: "halt", "skip(sigma=6.0)"
    # continues without the step, "rollback(limit=3)" continues with the data after it
    train.on_bad_step = plain("halt", since="halt")
    # steps between evaluations on held-out text
    train.eval_every = changeable(number(250, least=1))
    # whether metrics are also by layer
    train.log_layers = changeable(plain(False, since=False))
    # besides metrics.jsonl: "tensorboard", "wandb(project='x')"
    train.writers = changeable(spec((), "writers"))

    config.probes = probes = ConfigDict(type_safe=False)
    # steps between evaluations of the probes; 0 is never
    probes.every = changeable(number(100, least=0, since=0))
    names = ("stream", "contribution", "gradient", "update")
    probes.names = changeable(spec(names, "probes", since=()))  # probes evaluated
    # held-out sequences they see, rounded up to the devices
    probes.batch = changeable(number(8, least=1, since=8))

    config.eval = evaluation = ConfigDict(type_safe=False)
    # tokens in a held-out sequence; 0 is data.length
    evaluation.length = number(0, least=0, most=2**31 - 1, since=0)
    evaluation.batch = number(64, least=1)  # sequences in an evaluation step
    # evaluation steps during training; all at the end
    evaluation.batches = number(8, least=1)

    config.mesh = mesh = ConfigDict(type_safe=False)
    mesh.data = parts(-1)  # replicas; -1 is the devices that are left
    mesh.fsdp = parts(1)  # parts into which parameters are split
    # parts into which the tokens of a row are split
    mesh.sequence = parts(1, since=1)
    # parts into which the experts of each layer are split, and the batch with them
    mesh.expert = parts(1, since=1)
    mesh.tensor = parts(1)  # parts into which each sublayer is split
    # TPU slices among which the replicas are divided
    mesh.dcn_data = changeable(number(1, least=1, since=1))
    # XLA devices on a CPU; ignored elsewhere
    mesh.cpu_devices = changeable(number(1, least=1, most=2**10))

    return config
