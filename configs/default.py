"""The fields of an experiment and their defaults, which are the paper's where it names them."""

from typing import Any

from ml_collections import ConfigDict, config_dict


def get_config() -> Any:
  """The fields that every config has."""
  return ConfigDict(
    dict(
      # data
      dataset=config_dict.placeholder(str),
      data_dir=config_dict.placeholder(str),  # None: ~/tensorflow_datasets
      model=dict(
        stages=(2, 2, 2, 2),
        width=64,
        stem="small",
        dtype="float32",  # of computation; parameters and logits are always float32
      ),
      data_threads=2,  # that read, decode and augment ahead of the step
      # workers
      num_workers=5,
      workers="auto",  # "devices" of a mesh, "simulated" on one device, or "auto"
      batch_size=128,  # of one worker: images, or streams of text
      unroll=35,  # words of a stream in a batch
      eval_batch_size=500,
      # what is compared
      methods=("none", "rtopk", "topk", "randomk"),
      seeds=(0,),
      # the exchange
      density=0.01,
      subsample=config_dict.placeholder(float),  # r/k; None: the number of workers
      scope="global",
      average="workers",
      error_feedback=True,
      momentum=0.9,
      nesterov=False,
      momentum_masking=True,
      clip_norm=config_dict.placeholder(float),
      dense=False,  # compress every leaf, so that k means what the paper's tables say
      warmup_epochs=4,  # epochs at a higher density
      # the optimizer
      learning_rate=0.1,  # at the start
      schedule="cosine",  # to 0; or "zaremba": constant, then divided by `decay` every epoch
      constant_epochs=14,
      decay=1.15,
      weight_decay=0.0,
      epochs=1,
      max_steps=config_dict.placeholder(int),  # ends a run early
    )
  )
