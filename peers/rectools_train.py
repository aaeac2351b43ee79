"""Train RecTools' SASRec or eSASRec for a while: `rectools_train.py LOG.parquet KIND OUT.json SECONDS THREADS`."""

import sys
from typing import Any

import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers
from stopwatch import stopwatch

WIDTH, NUM_LAYERS, NUM_HEADS, LENGTH, BATCH = 128, 2, 2, 200, 128
ESASREC: dict[str, Any] = {"loss": "sampled_softmax", "n_negatives": 256, "transformer_layers_type": LiGRLayers}

log_path, kind, out, seconds, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
log = pd.read_parquet(log_path).rename(columns={"timestamp": Columns.Datetime}).assign(**{Columns.Weight: 1.0})
log[Columns.Datetime] = pd.to_datetime(log[Columns.Datetime], unit="ms")
watch = stopwatch(Callback, lambda batch: int((batch["yw"] != 0).sum()), float(seconds), out)


def trainer() -> Trainer:
    """RecTools' own trainer with the stopwatch in it."""
    return Trainer(
        max_epochs=1000,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[watch],
    )


model = SASRecModel(
    n_blocks=NUM_LAYERS,
    n_heads=NUM_HEADS,
    n_factors=WIDTH,
    session_max_len=LENGTH,
    batch_size=BATCH,
    epochs=1000,
    get_trainer_func=trainer,
    **({"loss": "softmax"} if kind == "sasrec" else ESASREC),
)
model.fit(Dataset.construct(log))
