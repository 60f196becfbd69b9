"""Every field of an experiment: default, range and meaning. Defaults are the paper's where it names them."""

import os

from configs.rows import METHODS, SETTINGS
from configs.schema import Field, flag, integer, number, section, several, text

MAX_SEED = 2**31 - 1

# Of ``config.optimizer``. Learning rate, schedule and weight decay are the same fields for all.
OPTIMIZER: dict[str, Field] = dict(
  name=text("sgd", "of it", "sgd", "adamw", "muon"),
  b1=number(
    0.9, "adamw, and muon's AdamW, which is Nesterov's: how the mean is kept", least=0, below=1
  ),
  b2=number(0.999, "likewise of the mean square", least=0, below=1),
  eps=number(1e-8, "adamw and muon: what keeps a divisor from being 0", above=0),
  momentum=number(0.95, "muon: of the gradient, Nesterov's", least=0, below=1),
  iterations=integer(5, "muon: of Newton and Schulz, towards an orthogonal matrix", least=1),
  rms=number(
    0.2, "muon: root mean square of a matrix's step at learning rate 1, as AdamW's is", above=0
  ),
)

FIELDS: dict[str, Field] = dict(
  variant=text(
    "full", "which of the config's variants fills in what is open (configs/variants.py)"
  ),
  variants=Field(dict(full={}), "the variants and what each fills in", dict),
  # the task
  task=text(None, '"package.module:name" of one of your own; None: the data set\'s'),
  task_options=Field({}, "what it likes to be told", dict),
  dataset=text(
    None,
    "digits, cifar10, imagenet2012, ptb, python_docs, each of the two also with _characters, tiny_shakespeare, also "
    'with _words, or "package.module:name" of one\'s own',
  ),
  data_dir=text(os.environ.get("RTOPK_JAX_DATA"), "None: ~/tensorflow_datasets", optional=True),
  train_examples=integer(None, "the first so many images or words; None: all", least=1),
  model=Field(
    dict(name="resnet", stages=(2, 2, 2, 2), width=64, stem="small", dtype="float32"),
    'the network: its name is resnet, lstm, transformer or "package.module:name"; its fields are its own',
    dict,
  ),
  data_threads=integer(2, "that read, decode and augment ahead of the step", least=0, most=1024),
  # workers
  num_workers=integer(5, "how many workers train together", least=1),
  workers=text(
    "auto",
    '"devices" of a mesh, "simulated" on one device, or "auto"',
    "auto",
    "devices",
    "simulated",
  ),
  mesh=section(
    "the devices of a worker, and how they are laid out",
    workers=integer(None, "how many workers there are; None: num_workers", least=1),
    chips=integer(1, "of a worker, over which its batch is dealt; they average densely", least=1),
    shards=integer(
      1, "of a worker's weights and optimizer, over as many devices of each chip's place", least=1
    ),
    fast=text(
      "auto",
      'within what links are fast: a TPU "slice", a "process", "all" devices, or "auto"',
      "auto",
      "slice",
      "process",
      "all",
    ),
  ),
  batch_size=integer(128, "of one worker: images, or streams or windows of text", least=1),
  global_batch_size=integer(None, "of all workers in an exchange; sets batch_size", least=1),
  micro_batches=integer(
    1, "batches of a worker whose gradients are averaged before an exchange", least=1
  ),
  unroll=integer(35, "words of a stream, or of a window, in a batch", least=1),
  eval_batch_size=integer(500, "of an evaluation: images, or streams or windows of text", least=1),
  # what is compared
  methods=several(METHODS, "what is compared", text("", "", *METHODS), filled=True, distinct=True),
  seeds=several(
    (0,),
    "of weights, data and selector; one run each",
    integer(0, "", least=0, most=MAX_SEED),
    filled=True,
    distinct=True,
  ),
  # when workers exchange
  setting=text(
    "distributed", '"distributed": every batch; "federated": after local steps', *SETTINGS
  ),
  local_steps=integer(None, "federated: steps of a round; None is an epoch", least=1),
  participation=number(
    1.0, "federated: share of the workers that are there in a round", above=0, most=1
  ),
  keep_local_optimizer=flag(False, "federated: or it starts anew every round"),
  outer_learning_rate=number(
    1.0, "federated: of the step along the mean of what the workers came to", above=0
  ),
  outer_momentum=number(0.0, "federated: of that step", least=0, below=1),
  outer_nesterov=flag(False, "federated: Nesterov's momentum there"),
  # the exchange
  density=number(0.01, "the share of entries that is sent, k/d", above=0, most=1),
  subsample=number(None, "r/k; None: the number of workers", least=1),
  unbiased=flag(False, "whether what is sent is scaled to be unbiased"),
  scope=text("global", '"global", "leaf" or "block:SIZE": among what the largest are chosen'),
  average=text("workers", 'what a sum is divided by: "workers" or "senders"; "sum": by nothing'),
  error_feedback=flag(True, "whether what is not sent is remembered"),
  momentum=number(
    0.9, "of the gradients, before selection; 0 where the optimizer has its own", least=0, below=1
  ),
  nesterov=flag(False, "Nesterov's momentum there"),
  momentum_masking=flag(True, "whether the momentum of what was sent is cleared"),
  clip_norm=number(None, "the largest norm of a worker's gradient; None: any", above=0),
  # False, so that k means what the paper's tables say.
  dense=flag(False, "whether leaves are sent whole: none, all, or None: small ones", optional=True),
  collective=text(
    "all_gather",
    "how it travels between workers: all_gather, reduce_scatter, or auto, by bandwidth; hierarchical[:NAME]: so, "
    "and in parts over the chips of a worker, as it is anyway where mesh.chips is above 1",
  ),
  bandwidth=text(None, 'auto: of each worker\'s link, such as "1Gbit/s"', optional=True),
  wire_values=text(
    "float32", "of values on the wire: float32, bfloat16, float16, int8, int4, int2"
  ),
  wire_indices=text("int32", "of indices on the wire: int32, elias_fano or block"),
  memory_decay=number(1.0, "what the memory is multiplied by each step", above=0, most=1),
  memory_dtype=text("float32", "of what is remembered"),
  delay=integer(
    0, "steps from sending to applying; 1: messages travel under the next gradient", least=0, most=1
  ),
  warmup_epochs=integer(4, "epochs at a higher density; federated: of rounds", least=0),
  # the optimizer
  optimizer=section("of the step after an exchange; federated: of local steps", **OPTIMIZER),
  learning_rate=number(0.1, "at the start, or after its warm-up", least=0),
  learning_rate_warmup=number(
    0.0, "the share of a run in which the learning rate rises in a line", least=0, below=1
  ),
  learning_rate_end=number(0.0, '"cosine": at the end', least=0),
  schedule=text(
    "cosine",
    '"cosine": to learning_rate_end; "step": times step_factor after each of step_epochs; "zaremba": constant, then divided '
    "by decay every epoch",
    "cosine",
    "step",
    "zaremba",
  ),
  step_epochs=several(
    (), "epochs after which the learning rate drops", integer(0, "", least=1), distinct=True
  ),
  step_factor=number(0.1, "what it is multiplied by then", least=0),
  constant_epochs=integer(14, "zaremba: epochs before it falls", least=1),
  decay=number(1.15, "zaremba: what it is divided by", above=0),
  weight_decay=number(
    0.0,
    "sgd: added to the gradient times the weights; adamw and muon: of matrices, apart from the gradient",
    least=0,
  ),
  epochs=integer(1, "passes over the training set", least=1),
  max_steps=integer(None, "exchanges: ends a run early", least=1),
  max_batches=integer(
    None, "batches of a worker: ends a run early, however many of them are of an exchange", least=1
  ),
  # the run
  log_every=integer(10, "exchanges between two lines of metrics", least=1),
  eval_every=integer(1, "epochs between two evaluations; 0: none before the end", least=0),
  eval_at_end=flag(True, "whether the last epoch ends with one, whatever its number"),
  checkpoint_every=integer(None, "exchanges; None: every epoch, 0: never", least=0),
  keep_checkpoints=integer(2, "how many of them stay", least=2),
  check_every=integer(
    100, "exchanges, after which workers must have the same weights; 0: never", least=0
  ),
  max_skipped=integer(
    10, "exchanges in a row, skipped for what is not finite, that a run survives", least=1
  ),
  peer_timeout=number(
    30.0,
    "seconds after which a process that is not heard of is taken for dead",
    least=2,
    most=86_400,
  ),
  profile_from=integer(3, "the first exchange of a profile", least=1),
  profile_steps=integer(0, "exchanges in it", least=0),
  compilation_cache=text("~/.cache/rtopk_jax", "what was compiled; None: nowhere", optional=True),
)

# Dictionaries with fields of their own, which are checked beside what they are of.
FREE = ("model", "task_options", "variants")
