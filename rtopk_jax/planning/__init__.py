"""Whether compression pays, before anything is trained.

Comes in: the numbers of parameters and workers, and a link. Goes out: an ``Advice``, with the seconds of every way
to exchange and the bandwidth at which each breaks even with the dense one.

1. ``_advice`` compares what the cost model in ``exchange`` says, and gives a reason.
2. ``_speed`` measures how fast a worker compresses on the device at hand, a ``LocalSpeed``.

``python -m rtopk_jax.plan`` is its command line.
"""

from rtopk_jax.planning._advice import Advice as Advice
from rtopk_jax.planning._advice import advise as advise
from rtopk_jax.planning._speed import measure_local as measure_local
