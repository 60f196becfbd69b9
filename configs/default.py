"""The fields of an experiment and their defaults, which are the paper's where it names them."""

import os
from typing import Any

from ml_collections import ConfigDict, config_dict


def get_config() -> Any:
  """The fields that every config has."""
  return ConfigDict(
    dict(
      variant="full",  # which of the config's variants fills in what is open (configs/variants.py)
      variants=dict(full={}),
      # the task
      task=config_dict.placeholder(
        str
      ),  # "package.module:name" of one of your own; None: the data set's
      task_options={},  # what it likes to be told
      dataset=config_dict.placeholder(str),
      data_dir=config_dict.FieldReference(  # None: ~/tensorflow_datasets
        os.environ.get("RTOPK_JAX_DATA"), field_type=str
      ),
      train_examples=config_dict.placeholder(int),  # the first so many images or words; None: all
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
      global_batch_size=config_dict.placeholder(
        int
      ),  # of all workers in an exchange; sets batch_size
      micro_batches=1,  # batches of a worker whose gradients are averaged before an exchange
      unroll=35,  # words of a stream in a batch
      eval_batch_size=500,
      # what is compared
      methods=("none", "rtopk", "topk", "randomk"),
      seeds=(0,),
      # when workers exchange: "distributed", every batch; "federated", after local steps
      setting="distributed",
      local_steps=config_dict.placeholder(int),  # federated: None is an epoch
      participation=1.0,  # federated: share of the workers that are there in a round
      keep_local_optimizer=False,  # federated: or it starts anew every round
      outer_learning_rate=1.0,  # federated: of the step along the mean of what the workers came to
      outer_momentum=0.0,
      outer_nesterov=False,
      # the exchange
      density=0.01,
      subsample=config_dict.placeholder(float),  # r/k; None: the number of workers
      unbiased=False,
      scope="global",  # or "leaf", or "block:SIZE"
      average="workers",
      error_feedback=True,
      momentum=0.9,
      nesterov=False,
      momentum_masking=True,
      clip_norm=config_dict.placeholder(float),
      dense=False,  # compress every leaf, so that k means what the paper's tables say; None: not small ones
      collective="all_gather",
      wire_values="float32",
      wire_indices="int32",
      memory_decay=1.0,
      memory_dtype="float32",
      warmup_epochs=4,  # epochs at a higher density; federated: of rounds
      # the optimizer
      learning_rate=0.1,  # at the start
      schedule="cosine",  # to 0; "step": times step_factor after each of step_epochs; or
      step_epochs=(),  # "zaremba": constant, then divided by `decay` every epoch
      step_factor=0.1,
      constant_epochs=14,
      decay=1.15,
      weight_decay=0.0,
      epochs=1,
      max_steps=config_dict.placeholder(int),  # exchanges: ends a run early
      # the run
      log_every=10,  # exchanges
      checkpoint_every=config_dict.placeholder(int),  # exchanges; None: every epoch, 0: never
      keep_checkpoints=2,
      check_every=100,  # exchanges, after which workers must have the same weights; 0: never
      max_skipped=10,  # exchanges in a row, skipped for what is not finite, that a run survives
      profile_from=3,  # the first exchange of a profile
      profile_steps=0,  # exchanges in it
      compilation_cache="~/.cache/rtopk_jax",  # what was compiled; None: nowhere
    )
  )
