"""One step of n workers: each goes through its batches, then they exchange.

1. ``rounds``: what a worker does between two exchanges, which is to sum gradients or to take local steps.
2. ``schedules``: the learning rate of each step.
3. ``layout``: which devices a worker is, and where on them everything lies.
4. ``links``: how messages travel between workers.
5. ``methods``: from a config to an exchange of ``rtopk_jax`` and the rounds around it.
6. ``workers``: the workers on a mesh, or simulated on one device; the compiled step.
7. ``participation``: which workers take part in a round.
8. ``drift``: whether all workers still have the same weights.
9. ``totals``: sums over the steps of a run, such as bytes sent and steps skipped.
"""
