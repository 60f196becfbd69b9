"""Which workers are there in a round of federated training."""

import numpy as np

_PARTICIPATION = 101  # what the generator is for: no other draws the same numbers


def present(share: float, num_workers: int, seed: int, step: int) -> np.ndarray | None:
  """Who takes part: a random subset of one size, at least one worker.

  Args:
    share: of the workers.
    num_workers: n.
    seed: of the run.
    step: number of the round.

  Returns:
    bool (n,), or None when all are there.
  """
  if share == 1:
    return None
  chosen = np.zeros(num_workers, bool)
  rng = np.random.default_rng((seed, _PARTICIPATION, step))
  chosen[rng.permutation(num_workers)[: max(1, round(share * num_workers))]] = True
  return chosen
