"""What every test runs under, the doctests of the package too: eight CPU devices and strict arithmetic."""

import gc
import importlib.metadata
import itertools
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most programs run once, here and in the processes that tests start: plain machine code is ready in less
# than half of the time. What XLA makes of a program before that stays as users have it.
# Versions of jaxlib after 0.10 do not know the last of these flags, and end a process that names it.
os.environ["XLA_FLAGS"] = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
  "--xla_cpu_parallel_codegen_split_count=1 "
  f"{'--xla_cpu_use_fusion_emitters=false ' * importlib.metadata.version('jaxlib').startswith('0.10.')}"
  f"{os.environ.get('XLA_FLAGS', '')}"
)

import hypothesis
import jax

# What tracing makes stays for long: garbage is looked for less often than it would be.
gc.set_threshold(20_000, 20, 20)

jax.config.update("jax_num_cpu_devices", 8)
# The library promises not to promote silently; a test that needs the usual rules asks for them by name.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a shape compiles, which no deadline allows for. Derandomised: same run, same tests.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("tests")


# Half of what Linux lets a process map; looked up after every so many tests.
_MANY_MAPPINGS, _OFTEN = 30_000, 4
_tests = itertools.count(1)


def pytest_runtest_teardown():
  """Forgets compiled programs when there are many: each is mapped in pieces, and one too many ends the process."""
  mappings = pathlib.Path("/proc/self/maps")
  is_due = next(_tests) % _OFTEN == 0 and mappings.exists()
  if is_due and len(mappings.read_bytes().splitlines()) > _MANY_MAPPINGS:
    jax.clear_caches()
