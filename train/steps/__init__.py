"""One step of n workers: each goes through its batches, then they exchange.

1. ``rounds``: what a worker does between two exchanges, which is to sum gradients or to take local steps.
2. ``schedules``: the learning rate of each step.
3. ``optimizers``: what stands before the exchange and what after it, by the optimizer.
4. ``methods``: from a config to an exchange of ``rtopk_jax`` and the rounds around it.
5. ``workers``: the workers as devices of a mesh, or simulated on one device; the compiled step.
6. ``participation``: which workers take part in a round.
7. ``drift``: whether all workers still have the same weights.
8. ``totals``: sums over the steps of a run, such as bytes sent and steps skipped.
"""
