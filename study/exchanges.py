"""The exchange of a setting, by the library's public names alone."""

import functools
from typing import Any

import jax
import optax

import rtopk_jax
from study.settings import Setting
from study.tasks import IMAGE_SIZES, mlp_init

AXIS = "workers"
SELECTORS = {
  "rtopk": rtopk_jax.rtop_k,
  "topk": rtopk_jax.top_k,
  "randomk": rtopk_jax.random_k,
}
# Arguments of sparse_exchange beside what a setting's own fields say.
CHANNELS: dict[str, dict[str, Any]] = {
  "plain": {},
  "bf16": {"wire": rtopk_jax.Wire(values="bfloat16", indices="elias_fano")},
  "int8": {"wire": rtopk_jax.Wire(values="int8", indices="elias_fano")},
  "block": {"scope": rtopk_jax.Block(1024)},
  "owners": {"collective": rtopk_jax.ReduceScatter()},
  "later": {"delay": 1},
}


def selector(setting: Setting, rounds: int) -> rtopk_jax.Selector:
  """What a setting sends.

  Args:
    setting: with a method other than "none".
    rounds: exchanges an epoch.

  Returns:
    The selector.
  """
  density = setting.density
  if setting.warmup:
    density = rtopk_jax.warmup_density(density, rounds, setting.warmup)
  if setting.method == "rtopk":
    return rtopk_jax.rtop_k(density, setting.subsample or None)
  return SELECTORS[setting.method](density)


def exchange(
  setting: Setting, rounds: int, seed: jax.Array | int, clip_norm: float | None
) -> optax.GradientTransformationExtraArgs:
  """The exchange, and momentum after it where the setting has it there.

  Args:
    setting: the setting. Federated, momentum is the local optimizer's and not here.
    rounds: exchanges an epoch.
    seed: of the selector; may be traced.
    clip_norm: of the mean gradient, or None.

  Returns:
    A chain whose updates are still to be multiplied by the learning rate.
  """
  here = setting.exchange_every == "batch"
  momentum = setting.m if here and setting.momentum == "correction" else 0.0
  if setting.method == "none":
    sends = rtopk_jax.dense_exchange(AXIS, momentum=momentum, clip_norm=clip_norm)
  else:
    sends = rtopk_jax.sparse_exchange(
      selector(setting, rounds),
      AXIS,
      average=setting.average,
      error_feedback=setting.memory > 0,
      memory_decay=setting.memory or 1.0,
      momentum=momentum,
      momentum_masking=setting.masking,
      clip_norm=clip_norm,
      dense=False,
      seed=seed,
      **CHANNELS[setting.channel],
    )
  after = [optax.trace(setting.m)] if here and setting.momentum == "after" else []
  return optax.with_extra_args_support(optax.chain(sends, *after))


def bytes_of(setting: Setting) -> int:
  """Bytes that a worker hands over in a step, of the images' network, by the buffers that are exchanged."""
  # They are the same however entries are chosen.
  return _bytes_of(setting.but(method="topk") if setting.compression else setting)


@functools.cache
def _bytes_of(setting: Setting) -> int:
  shapes = jax.eval_shape(lambda key: mlp_init(IMAGE_SIZES, key), jax.random.key(0))
  return rtopk_jax.wire_bytes(exchange(setting, 1, 0, None), shapes, setting.workers).sent
