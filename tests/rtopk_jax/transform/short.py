"""Transformations of which only what a test is about has to be said."""

import rtopk_jax
from tests.rtopk_jax.harness import AXIS

SELECTOR = rtopk_jax.rtop_k(0.1)


def exchange(**options):
  return rtopk_jax.sparse_exchange(**{"selector": SELECTOR, "axis_name": AXIS, **options})


def dense(**options):
  return rtopk_jax.dense_exchange(**{"axis_name": AXIS, **options})


def sgd(**options):
  return rtopk_jax.rtopk_sgd(**{"learning_rate": 0.1, "density": 0.1, "axis_name": AXIS, **options})
