# Everything a newcomer needs: `make quickstart` and `make test`. Both make .venv first.

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: quickstart test test-slow lint clean

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

clean:
	rm -rf .venv runs
