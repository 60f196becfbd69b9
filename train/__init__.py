"""The training system: one loop for every method, task and way of having workers."""

from train.loop import train_and_evaluate as train_and_evaluate
