"""What platforms do differently: sets as bits, thresholds, lookups, writing and adding single entries.

Whoever selects, remembers or adds up calls one function here for one operation. Which way it goes is chosen in one
place, by ``_dispatch.here``, when a program is traced; ``_portable`` lists the operations, and ``_cpu``, ``_gpu``
and ``_tpu`` what each platform does otherwise. All ways give the same results on all platforms.

Sets: ``_bitset`` (``_tiles`` on TPUs), made by ``_flat_packing`` (``_flat_packing_gpu``, ``_tiled_packing``), which
reads a vector once, and counts in ``_statistics``. Thresholds: ``_threshold`` (``_threshold_gpu``). Numbers of few
bits: ``_bitpack``. Running totals: ``_prefix_sum``. Lookups: ``_gather``. Writing: ``_scatter`` (``_scatter_tpu``).
Adding up: ``_accumulate``.
"""

from rtopk_jax.kernels import _cpu, _gpu, _tpu
from rtopk_jax.kernels._dispatch import KERNELS
from rtopk_jax.kernels._dispatch import here as here

KERNELS.update(cpu=_cpu.CPU(), gpu=_gpu.GPU(), tpu=_tpu.TPU())
