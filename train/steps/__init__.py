"""One step of n workers: each goes through its batches, then they exchange.

1. ``rounds``: what a worker does between two exchanges, which is to sum gradients or to take local steps.
2. ``schedules``: the learning rate of each step.
3. ``optimizers``: what stands before the exchange and what after it, by the optimizer.
4. ``layout``: which devices a worker is, and where on them everything lies.
5. ``links``: how messages travel between workers.
6. ``methods``: from a config to an exchange of ``rtopk_jax`` and the rounds around it.
7. ``workers``: the workers on a mesh, or simulated on one device; the compiled step.
8. ``participation``: which workers take part in a round.
9. ``drift``: whether all workers still have the same weights.
10. ``totals``: sums over the steps of a run, such as bytes sent and steps skipped.
"""
