"""A transformer on characters or words, with presets that send less and less: dense, sparse, DiLoCo, SparseLoCo.

    python -m data.prepare tiny_shakespeare --data_dir=DATA
    python -m train.main --config=configs/lm.py:sparse,0.01 --workdir=DIR --config.data_dir=DATA

After the colon stands the preset, ``PRESET[,DENSITY]``; without it, ``dense``. Any field of it may be changed:
``--config.model.layers=12``, ``--config.optimizer.name=muon``, ``--config.local_steps=15``, ``--config.dataset=ptb``. The
text is Shakespeare's in characters. ``--config.dataset=python_docs_characters`` needs no data.

| preset | between two exchanges | what is exchanged | what is done with the mean |
|---|---|---|---|
| nanogpt | one batch of one worker | nothing: there is one worker | AdamW |
| dense | one batch | the gradient | AdamW |
| sparse | one batch | 1 % of it by rTop-k, with error feedback | AdamW |
| diloco | 30 steps of AdamW | how far they led | Nesterov's momentum of 0.9, learning rate 0.7 |
| sparseloco | 30 steps of AdamW | of each 4,096 entries the 64 largest, in 2 bits; a memory that decays by 0.95 | a step of 1 |
| sparseloco_rtopk | likewise | of each 4,096 a random 64 of the 256 largest | likewise |

Four workers but for nanogpt, each with a quarter of the text; 1,800 batches of each of them, by AdamW with a learning rate
that rises for a twentieth of the run and then falls along a cosine to a tenth of what it was. docs/training.md says what
of this is whose. H, the batches between exchanges, is ``local_steps``.

``nanogpt`` is nanoGPT's setting for a CPU: 4 layers, 4 heads, width 128, windows of 64, batches of 12, 2,000 steps. Its
README reports a validation loss of 1.88 nats a character on the last tenth of the text, of which one half is our validation
text and the other our test text.

    python -m train.main --config=configs/lm.py:nanogpt --workdir=DIR --config.data_dir=DATA

ends at 1.727 and 1.816, 1.772 on both halves, after 5 minutes on two busy CPU cores (seed 0). The model differs in what
has become usual since: positions by rotation, normalisation without a mean, and no biases.
"""

from ml_collections import ConfigDict

from configs import default

PRESETS = ("nanogpt", "dense", "sparse", "diloco", "sparseloco", "sparseloco_rtopk")
# Entries of a block of which each selects its own, and how many of them are sent.
BLOCK, SENT = 4096, 64


def get_config(preset: str | None = None):
  """A preset.

  Args:
    preset: such as "sparse,0.01"; None for "dense".

  Returns:
    The config.

  Raises:
    ValueError: for what is none; the message says what would be.
  """
  name, density = parse(preset or "dense")
  config = default.get_config()
  config.dataset = "tiny_shakespeare"
  config.model = ConfigDict(
    dict(
      name="transformer",
      layers=4,
      heads=4,
      width=128,
      expansion=4,
      tied=True,
      dropout=0.0,
      init_scale=0.02,
      rotation_base=10_000.0,
      dtype="float32",
      remat=False,
    )
  )
  config.num_workers, config.batch_size, config.unroll, config.eval_batch_size = 4, 12, 64, 60
  config.epochs, config.max_batches, config.warmup_epochs = 100, 1800, 0
  config.eval_every = 2
  config.momentum, config.clip_norm, config.weight_decay = 0.0, 1.0, 0.1
  config.optimizer.name, config.optimizer.b2 = "adamw", 0.99
  config.learning_rate, config.learning_rate_end, config.learning_rate_warmup = 1e-3, 1e-4, 0.05
  _ROWS[name](config)
  if density is not None:
    config.density = density
  return config


def parse(text: str) -> tuple[str, float | None]:
  """Reads what stands after the colon.

  Args:
    text: such as "sparse,0.01" or "diloco".

  Returns:
    The preset and the density, None where nothing is said of it.

  Raises:
    ValueError: for what is no preset.
  """
  form = f"PRESET[,DENSITY], such as sparse,0.01; got {text!r}"
  name, *rest = (part.strip() for part in text.split(","))
  if name not in PRESETS or len(rest) > 1:
    raise ValueError(f"PRESET is one of {', '.join(PRESETS)} in {form}.")
  if not rest:
    return name, None
  if name in ("nanogpt", "dense", "diloco"):
    raise ValueError(f"PRESET {name} sends everything and has no DENSITY in {form}.")
  try:
    density = float(rest[0])
  except ValueError:
    density = 0.0
  if not 0 < density < 1:
    raise ValueError(f"DENSITY is the share that is sent, above 0 and below 1, in {form}.")
  return name, density


def _nanogpt(config):
  config.methods, config.num_workers = ("none",), 1
  config.epochs, config.max_batches, config.eval_every = 2, 2000, 1


def _dense(config):
  config.methods = ("none",)


def _sparse(config):
  config.methods, config.density = ("rtopk",), 0.01


def _rounds(config):
  """Local steps, whose optimizer goes on where it was in the round before."""
  config.setting, config.local_steps, config.keep_local_optimizer = "federated", 30, True


def _diloco(config):
  _rounds(config)
  config.methods = ("none",)
  config.outer_learning_rate, config.outer_momentum, config.outer_nesterov = 0.7, 0.9, True


def _sparseloco(config):
  _rounds(config)
  config.methods = ("topk",)
  config.scope, config.density, config.average = f"block:{BLOCK}", SENT / BLOCK, "senders"
  config.memory_decay = 0.95
  config.wire_values, config.wire_indices = "int2", "block"


def _sparseloco_rtopk(config):
  _sparseloco(config)
  config.methods = ("rtopk",)


_ROWS = dict(
  nanogpt=_nanogpt,
  dense=_dense,
  sparse=_sparse,
  diloco=_diloco,
  sparseloco=_sparseloco,
  sparseloco_rtopk=_sparseloco_rtopk,
)
