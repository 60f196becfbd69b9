"""What to send: which k of the d entries of a vector.

Comes in: a ``Vector`` whose groups have a k and r of their own, and PRNG keys. Goes out: ascending positions, their
values, and statistics that the same read of the vector gives.

1. ``_selector`` is the protocol, ``_selection`` what comes out. ``_foreign`` selects by anybody's function of a flat
   array.
2. ``_rtop_k`` is the paper's family: it works out k and r, and picks a way to find them. ``_named`` has its names.
   ``_search`` finds the r entries of largest magnitude by counting. ``_subset`` draws k of them. ``_blocks`` does
   both within blocks, which are rows: ``_rows`` finds the largest of each, ``_ranks`` draws. ``_keys`` makes the int32
   keys that all of them compare.
3. ``_warmup`` changes the density between steps, in one compiled program.

``SparseSlices``, in ``_slices``, is what users see of a selection, and what a wire encodes.
"""

from rtopk_jax.select._named import random_k as random_k
from rtopk_jax.select._named import rtop_k as rtop_k
from rtopk_jax.select._named import top_k as top_k
from rtopk_jax.select._selector import Selector as Selector
from rtopk_jax.select._slices import SparseSlices as SparseSlices
from rtopk_jax.select._warmup import Stages as Stages
from rtopk_jax.select._warmup import warmup_density as warmup_density
