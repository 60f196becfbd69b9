"""How a message travels: k values and k indices as packed uint32 words, and back.

Comes in: ``SparseSlices``, and a PRNG key where values are rounded at random. Goes out: words, whose number is known
from k and d when a program is traced. So one buffer holds all that a worker sends.

1. ``_format`` is the protocol: ``words``, ``encode``, ``decode``. ``_wire`` is the library's.
2. ``_quantize`` codes values in a few bits by stochastic rounding, ``_elias_fano`` ascending indices.

Indices are always exact. What rounding takes from a value stays in the sender's memory.
"""

from rtopk_jax.wire._format import WireFormat as WireFormat
from rtopk_jax.wire._wire import Wire as Wire
