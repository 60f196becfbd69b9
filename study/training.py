"""One run: a compiled epoch serves every seed and every learning rate of a setting."""

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import rtopk_jax
from study import exchanges, tasks, watch
from study.exchanges import AXIS
from study.settings import Setting

Record = dict[str, Any]
# Of a run that are kept to be drawn.
_POINTS = 15


def schedule(rate: float, epoch: int, epochs: int, rounds: int) -> np.ndarray:
  """Learning rates of the rounds of an epoch: half a cosine from ``rate`` to 0 over the run."""
  steps = np.arange(epoch * rounds, (epoch + 1) * rounds)
  return (rate * (1 + np.cos(np.pi * steps / (epochs * rounds))) / 2).astype(np.float32)


def diverged(loss: float, epoch: int, chance: float) -> bool:
  """Whether a run may end: its mean loss over an epoch is not a number, or that of guessing after ten epochs."""
  return math.isnan(loss) or (epoch >= 9 and loss > 0.995 * chance)


class Program:
  """Training in a setting.

  Args:
    setting: with any number of epochs; the compiled epoch does not depend on it.
  """

  def __init__(self, setting: Setting):
    self.setting, self.task = setting, tasks.load(setting.task)
    self.local_rounds = len(self.task.order(setting, 0, 0))
    self.federated = setting.exchange_every == "epoch"
    # Exchanges of an epoch.
    self.rounds = 1 if self.federated else self.local_rounds
    self.axes = rtopk_jax.state_axes(
      self._tx(0, 1.0), jax.eval_shape(self.task.init, jax.random.key(0))
    )
    self.start = jax.jit(self._start)
    epoch = self._federated_epoch if self.federated else self._distributed_epoch
    self.epoch = jax.jit(epoch, donate_argnums=(1,))

  def _tx(self, seed: Any, rate: Any) -> optax.GradientTransformation:
    return self._rounds_of(seed, rate).tx if self.federated else self._exchange(seed)

  def _exchange(self, seed: Any) -> optax.GradientTransformationExtraArgs:
    clip_norm = None if self.federated else self.task.clip_norm
    return exchanges.exchange(self.setting, self.rounds, seed, clip_norm)

  def _rounds_of(self, seed: Any, rate: Any, split: Any = None) -> rtopk_jax.Federated:
    """Local SGD that starts anew every round, and the exchange of how far it got."""
    clip = self.task.clip_norm
    before = [optax.clip_by_global_norm(clip)] if clip else []
    return rtopk_jax.federated(
      lambda params, carry, numbers: self.task.loss(params, carry, split, numbers),
      lambda _: optax.chain(*before, optax.sgd(rate, self.setting.heavy or None)),
      self._exchange(seed),
      AXIS,
      has_model_state=True,
    )

  def _start(self, seed: jax.Array) -> Any:
    params = self.task.init(jax.random.key(seed))
    init = jax.vmap(
      self._tx(seed, 1.0).init,
      in_axes=None,
      out_axes=self.axes,
      axis_name=AXIS,
      axis_size=self.setting.workers,
    )
    return params, init(params), watch.begin(self.setting, params)

  def _distributed_epoch(
    self, split: Any, carried: Any, numbers: jax.Array, rates: jax.Array, seed: jax.Array
  ) -> Any:
    tx, loss = self._exchange(seed), self.task.loss
    exchange = jax.vmap(
      tx.update, in_axes=(0, self.axes), out_axes=(None, self.axes), axis_name=AXIS
    )
    gradient = jax.vmap(jax.value_and_grad(loss, has_aux=True), in_axes=(None, 0, None, 0))

    def step(carried, batch):
      params, before, watched, carry = carried
      numbers, rate = batch
      (losses, carry), gradients = gradient(params, carry, split, numbers)
      updates, after = exchange(gradients, before)
      watched, seen = watch.look(self.setting, watched, gradients, before, after, updates)
      params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
      return (params, after, watched, carry), {"loss": losses.mean()} | seen

    carry = self.task.begin(self.setting.workers)
    carried, seen = lax.scan(step, (*carried, carry), (numbers, rates))
    return carried[:-1], jax.tree.map(jnp.mean, seen)

  def _federated_epoch(
    self, split: Any, carried: Any, numbers: jax.Array, rates: jax.Array, seed: jax.Array
  ) -> Any:
    params, before, watched = carried
    federated = self._rounds_of(seed, rates[0], split)

    def worker(params, state, carry, numbers):
      begun = federated.begin(params, state, carry)
      local, (losses, _) = lax.scan(federated.local_step, begun, numbers)
      params, state, _ = federated.exchange(params, state, carry, local)
      return params, state, local.params, losses.mean()

    everyone = jax.vmap(
      worker,
      in_axes=(None, self.axes, 0, 1),
      out_axes=(None, self.axes, 0, 0),
      axis_name=AXIS,
    )
    carry = self.task.begin(self.setting.workers)
    moved, after, ends, losses = everyone(params, before, carry, numbers)
    steps = jax.tree.map(lambda p, q: p - q, params, ends)
    updates = jax.tree.map(jnp.subtract, params, moved)
    watched, seen = watch.look(self.setting, watched, steps, before.outer, after.outer, updates)
    return (moved, after, watched), {"loss": losses.mean()} | seen

  def run(self, epochs: int, rate: float, seed: int) -> Record:
    """Trains.

    Args:
      epochs: passes over the data.
      rate: the learning rate at the start; it falls to nothing.
      seed: of weights, order of the data and the selector.

    Returns:
      Scores of held-out and test examples after the last epoch, and by name the means of its last epoch,
      of the first seed of up to 15 epochs. And the seconds it took.
    """
    began = time.monotonic()
    task, drawn = self.task, jnp.int32(seed)
    split = task.splits.train
    split = (jnp.asarray(split.inputs), jnp.asarray(split.labels))
    carried = self.start(drawn)
    epochs_seen = []
    for epoch in range(epochs):
      rates = schedule(rate, epoch, epochs, self.rounds)
      numbers = task.order(self.setting, seed, epoch).astype(np.int32)
      carried, seen = self.epoch(split, carried, numbers, rates, drawn)
      epochs_seen.append(seen)
      if diverged(float(seen["loss"]), epoch, task.chance):
        break
    params = carried[0]
    # What a run looked like on the way is kept of one seed.
    kept = epochs_seen if seed == 0 else epochs_seen[-1:]
    kept = kept[::-1][:: -(-len(kept) // _POINTS)][::-1]
    names = watch.NAMES[:1] if self.setting.method == "none" else watch.NAMES
    number = lambda x: float(f"{float(x):.3g}")
    seen = {name: [number(x[name]) for x in kept] for name in names}
    return {
      "valid": round(task.score(params, task.splits.valid), 3),
      "test": round(task.score(params, task.splits.test), 3),
      "seen": seen,
      "seconds": round(time.monotonic() - began, 1),
    }


@functools.lru_cache(maxsize=8)
def _program(setting: Setting) -> Program:
  return Program(setting)


def run(setting: Setting, rate: float, seed: int) -> Record:
  """Trains in a setting; settings that differ in epochs alone share a compiled program."""
  return _program(setting.but(epochs=1)).run(setting.epochs, rate, seed)
