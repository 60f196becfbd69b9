"""How long a step's exchange, and a whole training, should take on a link, before anything is compiled."""

import collections

import rtopk_jax
from train.planning.experiment import Experiment
from train.steps import links


def exchange(
  experiment: Experiment,
  method: str,
  bandwidth: str,
  *,
  stage: int = -1,
  local: rtopk_jax.LocalSpeed | None = None,
) -> float:
  """Seconds of one exchange: the library's cost model with the bytes that this config really sends.

  Args:
    experiment: the config and what it comes to.
    method: what is exchanged how.
    bandwidth: of a worker's link, such as "1Gbit/s".
    stage: the epoch of the warm-up; the last one is what stays.
    local: how fast a worker compresses; None: two CPU cores.

  Returns:
    Seconds, of the link and of the worker one after the other.
  """
  config, n = experiment.config, experiment.config.num_workers
  # The model knows no blocks; what it takes to choose and place is the same, and bytes are put right below.
  indices = "elias_fano" if config.wire_indices == "block" else config.wire_indices
  densities = experiment.densities
  advice = rtopk_jax.advise(
    experiment.size,
    n,
    bandwidth,
    densities=(densities[min(stage, len(densities) - 1)],),
    collectives=(links.between_workers(config),),
    wire=rtopk_jax.Wire(config.wire_values, indices),
    local=local,
  )
  modelled = advice.dense if method == "none" else advice.estimates[0]
  link = rtopk_jax.Link(bandwidth)
  more = experiment.costs[method][stage].link - modelled.bytes
  return modelled.seconds + link.bits(rtopk_jax.Traffic(0, 0, 0, more)) / float(link.bandwidth)


def training(
  experiment: Experiment,
  method: str,
  bandwidth: str,
  batch_seconds: float,
  local: rtopk_jax.LocalSpeed | None = None,
) -> float:
  """Seconds of a run: its batches, and its exchanges at the density that each of them has.

  Args:
    experiment: the config and what it comes to.
    method: what is exchanged how.
    bandwidth: of a worker's link.
    batch_seconds: of a worker's batch between two exchanges, as measured.
    local: how fast a worker compresses; None: two CPU cores.

  Returns:
    Seconds, without compilation, evaluations and checkpoints.
  """
  plan, last = experiment.plan, len(experiment.costs[method]) - 1
  counts = collections.Counter(min(i // plan.per_epoch, last) for i in range(plan.exchanges))
  exchanges = sum(
    count * exchange(experiment, method, bandwidth, stage=stage, local=local)
    for stage, count in counts.items()
  )
  return plan.exchanges * plan.batches * batch_seconds + exchanges
