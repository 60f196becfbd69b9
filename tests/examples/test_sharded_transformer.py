"""The example of a sharded model: it learns, and between replicas there are packed words and the loss, no more."""

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import rtopk_jax
from benchmarks import hlo
from examples import sharded_transformer as example


# Of a smaller transformer this is in ``tests/train/steps/test_groups.py``.
@pytest.mark.slow
@pytest.mark.parametrize(("replicas", "shards"), [(2, 2), (2, 4)])
def test_between_replicas_are_packed_words_and_the_loss(replicas, shards):
  mesh = example.make_mesh(replicas, shards)
  tx = example.make_optimizer()
  params, state = example.start(tx, mesh)
  assert state[0].residual["embed"].sharding.spec == P("replica", None, "fsdp")
  assert state[0].residual["embed"].shape == (replicas, *params["embed"].shape)
  step = example.make_step(tx, mesh, params)
  tokens = list(itertools.islice(example.batches(32 * replicas), 25))
  compiled = step.lower(params, state, tokens[0]).compile()
  replica_of = {i: i // shards for i in range(replicas * shards)}
  between = [x for x in hlo.Program(compiled.as_text()).collectives() if x.crosses(replica_of)]
  # The mean loss, and the workers' weights that it is a mean by.
  scalars = [x for x in between if all(array.bytes == 4 for array in x.arrays)]
  assert sum(len(x.arrays) for x in scalars) <= 2
  crossing = [x for x in between if x not in scalars]
  assert crossing
  for collective in crossing:
    assert collective.kind == "all-gather", str(collective)
    assert {x.dtype for x in collective.arrays} == {"u32"}, str(collective)
  # Each shard sends 5 % of its own entries, at some 24 bits each, and the scales 5 % of theirs.
  sent = sum(array.bytes for x in crossing for array in x.arrays)
  entries = sum(x.size for x in jax.tree.leaves(params)) / shards
  assert sent < 1.2 * replicas * (0.05 * entries * 3.2 + 2 * 512)

  losses = []
  for batch in tokens:
    params, state, loss = step(params, state, batch)
    losses.append(float(loss))
  assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
  assert rtopk_jax.exchange_metrics(state)["skipped_steps"] == 0
  # Replicas hold the same parameters, bit for bit.
  for leaf in jax.tree.leaves(params):
    by_index = {}
    for shard in leaf.addressable_shards:
      by_index.setdefault(str(shard.index), []).append(np.asarray(shard.data).tobytes())
    assert all(len(set(copies)) == 1 for copies in by_index.values())
