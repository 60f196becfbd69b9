"""Between whom: what every worker selected goes in, one update that all workers agree on comes out.

Comes in: an ``Outgoing`` for each vector, with a few numbers of this worker's (its header). Goes out: an
``Incoming`` for each, which says what all workers contribute and what this worker's memory has to know of it.

1. ``_collective`` says what a collective is, ``_message`` what is sent and what comes of it. ``_all_gather`` is the
   plainest.
2. ``_reduce_scatter`` gives every coordinate an owner, who adds it up.
3. ``_hierarchical`` is made of another for two kinds of links, ``_auto`` of several, chosen by what each states that it
   costs. ``_names`` has the collectives by name.
4. ``_reduce`` adds up the contributions, in worker order: so replicas agree bit for bit. ``_mean``
   averages what is not compressed.
5. ``_cost`` makes seconds of a collective's statement, by a ``Link`` and a ``LocalSpeed``.
"""

from rtopk_jax.exchange._all_gather import AllGather as AllGather
from rtopk_jax.exchange._auto import Auto as Auto
from rtopk_jax.exchange._collective import Collective as Collective
from rtopk_jax.exchange._cost import Cost as Cost
from rtopk_jax.exchange._cost import Link as Link
from rtopk_jax.exchange._cost import LocalSpeed as LocalSpeed
from rtopk_jax.exchange._hierarchical import Hierarchical as Hierarchical
from rtopk_jax.exchange._reduce_scatter import ReduceScatter as ReduceScatter
