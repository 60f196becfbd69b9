"""What a config comes to, before a run is begun.

1. ``settings``: which fields do not fit together.
2. ``plan``: how many exchanges there are, and after how many batches each.
3. ``experiment``: the task, the plan, and each method with its bytes: all that training needs.
4. ``forecast``: how long its exchanges and its runs should take on a link.
5. ``explain``: an experiment in words, for ``--explain``.
6. ``footprint``: memory and time of a step, measured beside plain data parallelism.
"""
