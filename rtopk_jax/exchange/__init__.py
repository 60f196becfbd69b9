"""Between whom: what every worker selected goes in, one update that all workers agree on comes out.

Comes in: an ``Outgoing`` for each vector, with a few numbers of this worker's (its header). Goes out: an
``Incoming`` for each, which says what all workers contribute and what this worker's memory has to know of it.

1. ``_collective`` says what a collective is, and has the plainest, ``AllGather``.
2. ``_reduce_scatter`` gives every coordinate an owner, who adds it up.
3. ``_auto`` has the collectives by name, ``Hierarchical`` (two kinds of links) and ``Auto`` (chosen by cost).
4. ``_reduce`` adds up the contributions, in worker order: so replicas agree bit for bit.
5. ``_cost`` predicts the seconds of an exchange from a ``Link`` and a ``LocalSpeed``.
"""

from rtopk_jax.exchange._auto import Auto as Auto
from rtopk_jax.exchange._auto import Hierarchical as Hierarchical
from rtopk_jax.exchange._collective import AllGather as AllGather
from rtopk_jax.exchange._cost import Link as Link
from rtopk_jax.exchange._cost import LocalSpeed as LocalSpeed
from rtopk_jax.exchange._reduce_scatter import ReduceScatter as ReduceScatter
