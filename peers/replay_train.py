"""Train RePlay's SasRec with full softmax for a while: `replay_train.py LOG.parquet KIND OUT.json SECONDS THREADS`."""

import sys

import lightning
import pandas as pd
import torch
from replay.data import Dataset, FeatureHint, FeatureInfo, FeatureSchema, FeatureSource, FeatureType
from replay.data.nn import SequenceTokenizer, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.sequential.sasrec import SasRec, SasRecTrainingDataset
from stopwatch import stopwatch
from torch.utils.data import DataLoader

WIDTH, NUM_LAYERS, NUM_HEADS, LENGTH, BATCH = 128, 2, 2, 200, 128

log_path, _, out, seconds, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
log = pd.read_parquet(log_path)
schema = FeatureSchema(
    [
        FeatureInfo("user_id", feature_type=FeatureType.CATEGORICAL, feature_hint=FeatureHint.QUERY_ID),
        FeatureInfo("item_id", feature_type=FeatureType.CATEGORICAL, feature_hint=FeatureHint.ITEM_ID),
        FeatureInfo("timestamp", feature_type=FeatureType.NUMERICAL, feature_hint=FeatureHint.TIMESTAMP),
    ]
)
dataset = Dataset(schema, interactions=log, check_consistency=False)
num_items = log["item_id"].nunique()
tensor_schema = TensorSchema(
    TensorFeatureInfo(
        name="item_id",
        is_seq=True,
        cardinality=num_items,
        padding_value=num_items,
        embedding_dim=WIDTH,
        feature_type=FeatureType.CATEGORICAL,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )
)
sequences = SequenceTokenizer(tensor_schema).fit_transform(dataset)
model = SasRec(
    tensor_schema, block_count=NUM_LAYERS, head_count=NUM_HEADS, hidden_size=WIDTH, max_seq_len=LENGTH, loss_type="CE"
)
loader = DataLoader(SasRecTrainingDataset(sequences, LENGTH), batch_size=BATCH, shuffle=True)
watch = stopwatch(lightning.Callback, lambda batch: int(batch["target_padding_mask"].sum()), float(seconds), out)
trainer = lightning.Trainer(
    max_epochs=1000,
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
    callbacks=[watch],
)
trainer.fit(model, loader)
