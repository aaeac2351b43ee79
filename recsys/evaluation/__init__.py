"""Metrics, baselines, protocols and paired statistics: the offline science. Imports no torch."""
