# Everything a newcomer needs: `make quickstart` and `make test`. Both make .venv first.
# `make aot-tpu` and `make aot-gpu` compile training steps for hardware that is not here, in environments
# of their own (1.3 GB and 4.4 GB to download).

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: quickstart test test-slow lint aot-tpu aot-gpu clean

quickstart: .venv/ready
	$(RUN) -m train.main --config=configs/quickstart.py --workdir=runs/quickstart

test: .venv/ready
	$(RUN) -m pytest -n 2

test-slow: .venv/ready
	$(RUN) -m pytest -n 2 -m slow

lint: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

aot-tpu: .venv-tpu/ready
	.venv-tpu/bin/python -m benchmarks.aot tpu

aot-gpu: .venv-gpu/ready
	.venv-gpu/bin/python -m benchmarks.aot gpu

.venv-tpu/ready: ACCELERATOR = tpu
.venv-gpu/ready: ACCELERATOR = cuda13
.venv-tpu/ready .venv-gpu/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement requirements.txt
	$(@D)/bin/python -m pip install --quiet 'jax[$(ACCELERATOR)]'
	touch $@

clean:
	rm -rf .venv .venv-tpu .venv-gpu runs
