"""ResNet-18 on CIFAR-10 with 5 workers: Tables I (distributed) and II (federated) of the paper.

    python -m data.prepare cifar10 --data_dir=DATA
    python -m train.main --config=configs/cifar10.py:distributed,rtopk,0.99 --workdir=DIR --config.data_dir=DATA

After the colon stands the row, ``SETTING,METHOD[,COMPRESSION]``; without it, all methods at 99 % are
compared in the distributed setting. ``--config.variant=small`` is for two CPU cores: a ResNet of 79,962
parameters, 10,000 of the images, 10 epochs, about two minutes a row.

The paper's (Section III-B): 5 workers, batches of 128 images a worker, momentum SGD, local gradient
accumulation, the mean over the senders of an entry, r/k = 5, 5 epochs of warm-up; federated, one local epoch
a round. What it leaves open, learning rate and epochs among it, is in docs/paper.md with our reasons.
Hardware of the full variant: one GPU or TPU, on which it has not been run to the end; two CPU cores take
half a minute a step.
"""

from configs import default, rows, variants


def get_config(row: str | None = None):
  """A row of Table I or II, or a comparison of all methods.

  Args:
    row: such as "federated,topk,0.95".

  Returns:
    The config.
  """
  config = default.get_config()
  config.dataset = "cifar10"
  config.weight_decay = 5e-4
  config.average = "senders"
  rows.apply(config, row)
  federated = config.setting == "federated"
  variants.vary(
    config,
    full=dict(
      model=dict(stages=(2, 2, 2, 2), width=64, stem="small"),
      batch_size=128,
      learning_rate=0.1,
      epochs=150,
      eval_every=1,
      warmup_epochs=4,
    ),
    # Convolutions at full resolution are what a CPU is slow at: this stem leaves a sixteenth of the pixels.
    small=dict(
      model=dict(stages=(1, 1, 1), width=16, stem="imagenet"),
      batch_size=32,
      learning_rate=0.05 if federated else 0.1,
      epochs=10,
      # As many images are tested as trained on: after every epoch that would be a fifth of the time.
      eval_every=2,
      # A single epoch at a quarter of the entries would be most of what so short a run sends.
      warmup_epochs=0,
      train_examples=10_000,
      local_steps=15 if federated else None,
    ),
  )
  return config
