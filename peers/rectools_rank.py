"""Lists of RecTools' models for the users of a log.

`rectools_rank.py LOG.parquet KIND OUT.parquet K VIEWED SECONDS THREADS`
Transformers train for at most SECONDS and keep the weights with the lowest loss on the last event of some users.
VIEWED is `keep` or `drop`: whether items of the history may be listed.
"""

import copy
import sys
import time
from typing import Any

import implicit.nearest_neighbours
import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import EASEModel, ImplicitItemKNNWrapperModel, SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers

WIDTH, NUM_LAYERS, NUM_HEADS, LENGTH, BATCH = 128, 2, 2, 200, 128
VALIDATION_USERS, NUM_NEIGHBOURS = 1000, 100
ESASREC: dict[str, Any] = {"loss": "sampled_softmax", "n_negatives": 256, "transformer_layers_type": LiGRLayers}

log_path, kind, out, k, viewed, seconds, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
torch.manual_seed(0)
log = pd.read_parquet(log_path).rename(columns={"timestamp": Columns.Datetime}).assign(**{Columns.Weight: 1.0})
log[Columns.Datetime] = pd.to_datetime(log[Columns.Datetime], unit="ms")


class KeepBest(Callback):
    """Stops after SECONDS; puts the weights of the epoch with the lowest validation loss back in the end."""

    def __init__(self) -> None:
        self.started, self.lowest, self.best = time.perf_counter(), float("inf"), None

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Look at the clock."""
        trainer.should_stop = trainer.should_stop or time.perf_counter() - self.started > float(seconds)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep what is better than all before."""
        loss = float(trainer.callback_metrics[module.val_loss_name])
        if not trainer.sanity_checking and loss < self.lowest:
            self.lowest, self.best = loss, copy.deepcopy(module.state_dict())

    def on_fit_end(self, _trainer: Trainer, module: LightningModule) -> None:
        """Put the best back."""
        if self.best is not None:
            module.load_state_dict(self.best)


def trainer() -> Trainer:
    """RecTools' own trainer, told when to stop."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(max_epochs=1000, accelerator="cpu", logger=False, callbacks=[KeepBest()], **quiet)


def validation_mask(interactions: pd.DataFrame) -> np.ndarray:
    """True for the last event of some users."""
    users = np.random.default_rng(0).permutation(interactions[Columns.User].unique())[:VALIDATION_USERS]
    from_end = interactions[::-1].groupby(Columns.User, sort=False).cumcount()[::-1]
    return ((from_end == 0) & interactions[Columns.User].isin(users)).to_numpy()


def transformer(**settings: Any) -> SASRecModel:
    """A RecTools transformer of the size of ours."""
    return SASRecModel(
        n_blocks=NUM_LAYERS,
        n_heads=NUM_HEADS,
        n_factors=WIDTH,
        session_max_len=LENGTH,
        batch_size=BATCH,
        epochs=1000,
        get_trainer_func=trainer,
        get_val_mask_func=validation_mask,
        **settings,
    )


model: Any = {
    "sasrec": lambda: transformer(loss="softmax"),
    "esasrec": lambda: transformer(**ESASREC),
    "item_knn": lambda: ImplicitItemKNNWrapperModel(implicit.nearest_neighbours.TFIDFRecommender(K=NUM_NEIGHBOURS)),
    "ease": lambda: EASEModel(),
}[kind]()
dataset = Dataset.construct(log)
model.fit(dataset)
lists = model.recommend(log[Columns.User].unique(), dataset, k=int(k), filter_viewed=viewed == "drop")
lists[[Columns.User, Columns.Item, Columns.Rank]].to_parquet(out)
