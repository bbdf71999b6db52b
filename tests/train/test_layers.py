"""What is logged of every layer."""

import json

import numpy as np

from reslab.train import loop


def test_learning_rate_update_and_gradient_of_every_layer(tmp_path, small_config):
    config = small_config(
        train__steps=4,
        train__log_every=2,
        train__log_layers=True,
        optim__name="heavy_tail(inner='adamw', every=2, until=1.0, blend=0, least=2)",
        optim__groups=((".", {"scaling": "layer_decay(decay=0.5)"}),),
        optim__learning_rate=1e-3,
    )
    loop.train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "layers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [1, 2, 4]
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for row, line in zip(rows, map(json.loads, metrics), strict=True):
        assert len(row["update_ratio"]) == len(row["gradient_norm"]) == 2
        assert min(row["update_ratio"]) > 0 and min(row["gradient_norm"]) > 0
        below, above = np.asarray(row["learning_rate"]) / line["learning_rate"]
        # The tails' factors are between 1 and 5, halved in the lower layer.
        assert 1 <= above <= 5 and 0.5 <= below <= 2.5
        norms = np.linalg.norm(row["gradient_norm"])
        assert norms < line["gradient_norm"]  # Embedding and head are left out.
