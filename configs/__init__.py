"""Experiments, one file a data set."""
