"""Training itself.

1. ``job``: ``train_and_evaluate``, every method and every seed of a config, one run after another.
2. ``run``: one method and one seed, from the first step or the last checkpoint to the end.
3. ``preemption``: SIGTERM, after which a run finishes its step, saves and ends.
"""
