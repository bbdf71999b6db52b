"""The whole schema: every field of a run, with its default, one comment a field.

Variants are named by spec strings, `"name"` or `"name(argument=value)"`;
`reslab list` shows them. Fields marked (tiled) also take a tuple of specs,
which is repeated over depth.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults: a small model on the embedded corpus."""
    # Types are checked when the config is loaded; here a tuple may replace a spec.
    config = ConfigDict(type_safe=False)

    config.seed = 0  # seeds the parameters and the order of the data

    config.model = model = ConfigDict(type_safe=False)
    model.name = "lm"  # what the parts are put together to
    model.features = 128  # width
    model.depth = 4  # layers with parameters of their own
    model.mixer = "attention(heads=4)"  # token mixer (tiled)
    model.ffn = "swiglu"  # feed-forward layer (tiled)
    model.norm = "rms"  # normalization (tiled)
    model.placement = "pre"  # where the norms sit (tiled)
    model.block = "standard"  # how sublayers form a layer (tiled)
    model.residual = "plain"  # how the depth stream is read and written
    model.stack = "uniform"  # how blocks are laid along depth
    model.linear = "dense"  # what a projection is
    model.position = "rope"  # position encoding
    model.tie_embeddings = False  # whether the head is the transposed embedding
    model.use_head_bias = False  # whether the head adds a bias to every logit
    model.use_embedding_projection = False  # square maps after embedding, before head
    model.vocabulary_multiple = 8  # the vocabulary is padded to a multiple of this
    model.vocabulary_chunks = 0  # parts of the cross-entropy; 0 chooses by size
    model.embedding_std = 0.02  # initial standard deviation of the embedding
    model.init_std = 0.0  # of projections; 0 is 1/sqrt(fan in)
    model.scales_output_by_depth = True  # output projections start at 1/sqrt(2 depth)
    model.dropout = 0.0  # rate on the outputs of sublayers, while training
    model.embedding_dropout = 0.0  # rate on the embedded tokens, while training
    model.layers = "auto"  # "scan", "unroll", or "auto": unrolled on a CPU
    model.kernels = "auto"  # "reference", "pallas", or "auto": where it pays
    model.remat = "none"  # what backward recomputes: "none", "dots", "full"

    config.precision = precision = ConfigDict(type_safe=False)
    precision.parameters = "float32"  # dtype of parameters and optimizer state
    precision.compute = "auto"  # dtype of compute; "auto" is by hardware

    config.data = data = ConfigDict(type_safe=False)
    data.source = "stdlib"  # where documents come from
    data.tokenizer = "bytes"  # how they become tokens
    data.length = 128  # tokens in a sequence
    data.batch = 16  # sequences in a step, over all devices
    data.workers = 0  # processes that prepare batches; 0 is a thread
    data.replay = 0.0  # share of windows from the text of the run that is continued

    config.optim = optim = ConfigDict(type_safe=False)
    optim.name = "adamw"  # optimizer
    optim.learning_rate = 3e-3  # at the schedule's peak
    optim.schedule = "cosine(warmup=50)"  # factor on it over the run
    optim.weight_decay = 0.1  # of the groups that name none
    optim.clip = 1.0  # bound of the global gradient norm; 0 is none
    # (pattern, {method, lr, lr_scale, scaling, schedule, weight_decay, clip, freeze});
    # the first match decides
    optim.groups = (
        ("(kernel|head|embedding)$", {}),
        (".", {"weight_decay": 0.0}),
    )

    config.train = train = ConfigDict(type_safe=False)
    train.steps = 500  # optimizer steps
    train.continue_from = ""  # run whose parameters are the start; "" is none
    train.accumulate = 1  # parts of a batch whose gradients are added up
    train.z_loss = 0.0  # factor on the squared log-normalizer
    train.orthogonality = 0.0  # factor on the distance of convolutions from orthogonal
    train.log_every = 10  # steps between metrics
    train.checkpoint_every = 100  # steps between checkpoints
    train.keep_checkpoints = 3  # newest checkpoints kept
    train.keep_every = 0  # checkpoints at multiples of this many steps stay; 0 is none
    # a loss or gradient that is not finite, or a spike: "halt", "skip(sigma=6.0)" goes
    # on without the step, "rollback(limit=3)" with the data after it
    train.on_bad_step = "halt"
    train.eval_every = 250  # steps between evaluations on held-out text
    train.log_layers = False  # whether metrics are also by layer
    train.writers = ()  # besides metrics.jsonl: "tensorboard", "wandb(project='x')"

    config.probes = probes = ConfigDict(type_safe=False)
    probes.every = 100  # steps between looks inside; 0 is never
    probes.names = ("stream", "contribution", "gradient", "update")  # what to look at
    probes.batch = 8  # held-out sequences looked at, rounded up to the devices

    config.eval = evaluation = ConfigDict(type_safe=False)
    evaluation.batch = 64  # sequences in an evaluation step
    evaluation.batches = 8  # evaluation steps during training; all at the end

    config.mesh = mesh = ConfigDict(type_safe=False)
    mesh.data = -1  # replicas; -1 is the devices that are left
    mesh.fsdp = 1  # parts into which parameters are split
    mesh.sequence = 1  # parts into which the tokens of a row are split
    mesh.tensor = 1  # parts into which each sublayer is split
    mesh.dcn_data = 1  # TPU slices among which the replicas are divided
    mesh.cpu_devices = 1  # XLA devices on a CPU; ignored elsewhere

    return config
