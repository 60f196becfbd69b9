"""What ``benchmarks.time_to_loss`` trains: a transformer on the words of the Penn Treebank, scored on part of its text."""

import dataclasses
from typing import Any, ClassVar

import data
from configs import lm
from configs.schema import integer
from train.tasks.language import Language
from train.tasks.task import Score


class _Interval:
  """Batches whose epochs are short, so that the run is scored often; windows are drawn from anywhere in the text.

  Args:
    source: of batches.
    batches: of an epoch.
  """

  def __init__(self, source: data.Source, batches: int):
    self.batch, self.steps_per_epoch = source.batch, batches


class Words(Language):
  """The Penn Treebank in words; an epoch has ``interval`` batches, and ``scored`` words are what a loss is of."""

  fields: ClassVar = {
    "task_options": {
      "interval": integer(50, "batches of a worker between two evaluations", least=1),
      "scored": integer(8192, "words at the beginning of the validation text", least=1024),
    }
  }

  def __init__(self, config: Any):
    text = data.TEXTS["ptb"](config.data_dir)
    scored = text.valid[: config.task_options.scored]
    # The test text is nobody's business here, and every evaluation would read it.
    super().__init__(config, dataclasses.replace(text, valid=scored, test=scored[:1024]))
    self.score = Score("valid_loss", "validation loss")

  def source(self, seed: int) -> data.Source:
    """The training batches."""
    return _Interval(super().source(seed), self.config.task_options.interval)


# By its name in ``benchmarks.time_to_loss``: a preset of configs/lm.py, a worker's batches, the learning rate, what else
# is changed. By the validation loss with simulated workers, rates are the best of 0.75, 1.5 and 3 · 10⁻³ for the dense run
# and of 1.5 and 3 · 10⁻³ for the sparse one, and numbers of local steps the best of 5, 10 and 30 (DiLoCo) and 5 and 10.
ROWS: dict[str, tuple[str, int, float, dict[str, Any]]] = {
  "dense": ("dense", 600, 1.5e-3, {}),
  "sparse": (
    "sparse,0.02",
    720,
    3e-3,
    {"error_feedback": False, "wire_values": "int8", "wire_indices": "elias_fano"},
  ),
  "SparseLoCo": ("sparseloco", 2700, 3e-3, {"local_steps": 5}),
  "DiLoCo": ("diloco", 3000, 3e-3, {"local_steps": 10}),
}


def get_config(row: str) -> Any:
  """A row: 2 layers of width 128, 4 workers, 4 windows of 32 words each; AdamW.

  Args:
    row: of ``ROWS``.

  Returns:
    The config.
  """
  preset, batches, rate, changes = ROWS[row]
  config = lm.get_config(preset)
  config.task, config.task_options = (
    "benchmarks.loss_task:Words",
    {"interval": batches // 12, "scored": 8192},
  )
  config.model.layers, config.model.heads, config.model.width = 2, 4, 128
  config.batch_size, config.unroll, config.eval_batch_size, config.eval_every = 4, 32, 32, 1
  config.max_batches, config.learning_rate, config.learning_rate_end = batches, rate, rate / 10
  config.checkpoint_every = 0
  for name, value in changes.items():
    config[name] = value
  config.log_every = max(1, 10 // (config.local_steps or 1))
  return config
