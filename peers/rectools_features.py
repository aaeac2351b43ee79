"""A log (a CSV file, or a Parquet folder) to sequences with RecTools and pandas: `rectools_features.py LOG OUT.pkl`."""

import sys

import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset

log = pd.read_csv(sys.argv[1]) if sys.argv[1].endswith(".csv") else pd.read_parquet(sys.argv[1])
log = log.rename(columns={"timestamp": Columns.Datetime}).assign(**{Columns.Weight: 1.0})
log[Columns.Datetime] = pd.to_datetime(log[Columns.Datetime], unit="ms")
dataset = Dataset.construct(log)
events = dataset.interactions.df.sort_values([Columns.User, Columns.Datetime], kind="stable")
events.groupby(Columns.User, sort=False)[Columns.Item].agg(list).to_pickle(sys.argv[2])
