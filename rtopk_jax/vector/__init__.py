"""Many arrays as one vector that is never materialised, and which leaves travel together.

Comes in: a gradient and its memory, as trees. Goes out: a ``Layout``, and pieces of a ``Vector`` that can be read.

1. ``_layout`` decides by shapes alone. Small leaves become one *bundle*; bundles that travel in one message are a
   *segment*. A leaf is compressed or sent dense. ``Block`` is the scope of a selection block by block.
2. ``_vector`` lines up a segment's bundles as one ``Vector``. A *place* says where a bundle lies in it. Its arrays
   there are a *piece*, whose entries are computed where they are read.

An entry's *position* counts through all pieces, each of which begins at a multiple of 32.
"""

from rtopk_jax.vector._layout import Block as Block
