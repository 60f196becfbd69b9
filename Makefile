# Everything a newcomer needs: `make quickstart` and `make test`. Both make .venv first.
# `make docs` builds the documentation in build/docs. `make package` builds what is published, and tries it.
# `make aot-tpu` and `make aot-gpu` compile training steps for hardware that is not here, in environments
# of their own (1.3 GB and 4.4 GB to download). `make gpu-check` measures a GPU that is here, in at most 8 minutes.

PYTHON ?= python3
RUN := .venv/bin/python
PINNED := $(shell grep -E '^(jax|jaxlib|optax)==' requirements.txt)

.PHONY: quickstart test test-slow test-oldest lint docs docs-links package aot-tpu aot-gpu gpu-check clean

quickstart: .venv/ready
	$(RUN) -m train.main --config=configs/quickstart.py --workdir=runs/quickstart

test: .venv/ready
	$(RUN) -m pytest -n 2 --dist loadfile

test-slow: .venv/ready
	$(RUN) -m pytest -n 2 -m slow

lint: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

# A warning, such as a link that leads nowhere, is an error. Addresses elsewhere are asked by `make docs-links` alone.
docs: .venv/ready
	$(RUN) -m sphinx --builder html --fail-on-warning --quiet docs build/docs

docs-links: .venv/ready
	$(RUN) -m sphinx --builder linkcheck --quiet docs build/links

# The wheel is made from the sdist. In an environment that has nothing else it runs, and its types are known.
package: .venv/ready
	rm -rf build/package
	$(RUN) -m build --quiet --outdir build/package .
	$(PYTHON) -m venv build/package/venv
	build/package/venv/bin/python -m pip install --quiet $(PINNED) build/package/*.whl
	cd build/package && venv/bin/python ../../tests/package/client.py
	$(RUN) -m pyright --pythonpath build/package/venv/bin/python tests/package/client.py

# The core with the oldest versions that pyproject.toml allows. Three files of tests need other libraries, and mesh/test_memory.py
# counts what the pinned compiler makes of a step.
test-oldest: .venv-oldest/ready
	.venv-oldest/bin/python -m pytest -n 2 tests/rtopk_jax \
	  $(addprefix --ignore=tests/rtopk_jax/,exchange/test_owners.py mesh/test_memory.py mesh/test_models.py transform/test_transforms.py)

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

.venv-oldest/ready: requirements-oldest.txt pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --requirement requirements-oldest.txt --editable . \
	  hypothesis pytest pytest-xdist
	touch $@

aot-tpu: .venv-tpu/ready
	.venv-tpu/bin/python -m benchmarks.aot tpu
	.venv-tpu/bin/python -m benchmarks.aot_delay tpu

aot-gpu: .venv-gpu/ready
	.venv-gpu/bin/python -m benchmarks.aot gpu
	.venv-gpu/bin/python -m benchmarks.aot_delay gpu

gpu-check: .venv-gpu/ready
	.venv-gpu/bin/python -m benchmarks.gpu_check

.venv-tpu/ready: ACCELERATOR = tpu
.venv-gpu/ready: ACCELERATOR = cuda13
.venv-tpu/ready .venv-gpu/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement requirements.txt
	$(@D)/bin/python -m pip install --quiet 'jax[$(ACCELERATOR)]'
	touch $@

clean:
	rm -rf .venv .venv-tpu .venv-gpu .venv-oldest build runs
