"""ResNet-34 on ImageNet with 5 workers: Table III (federated) of the paper.

    python -m data.prepare imagenet --data_dir=DATA --manual_dir=TARS
    python -m train.main --config=configs/imagenet.py:federated,rtopk,0.999 --workdir=DIR --config.data_dir=DATA

After the colon stands the row, ``SETTING,METHOD[,COMPRESSION]``; without it, all methods at 99.9 % are
compared in the federated setting. ``--config.variant=small`` shows on two CPU cores, in about two
minutes, that all of it runs: a narrow ResNet, 500 of the images, one epoch. Its accuracy says nothing.

The paper's (Section III-B): 5 workers, batches of 32 images a worker, momentum SGD, local gradient
accumulation, the mean over the senders of an entry, r/k = 5, 5 epochs of warm-up, one local epoch a round.
What it leaves open, learning rate and epochs among it, is in docs/paper.md with our reasons. Hardware of the
full variant: a machine with several GPUs or TPUs, and days; it has not been run.
"""

from configs import default, rows, variants


def get_config(row: str | None = None):
  """A row of Table III, or a comparison of all methods.

  Args:
    row: such as "federated,topk,0.999".

  Returns:
    The config.
  """
  config = default.get_config()
  config.dataset = "imagenet2012"
  config.density = 0.001
  config.weight_decay = 1e-4
  config.setting = "federated"
  config.average = "senders"
  config.data_threads = 16
  rows.apply(config, row)
  config.model.stem = "imagenet"
  variants.vary(
    config,
    full=dict(
      model=dict(stages=(3, 4, 6, 3), width=64),
      batch_size=32,
      eval_batch_size=100,
      learning_rate=0.0625,
      epochs=90,
      warmup_epochs=4,
    ),
    small=dict(
      model=dict(stages=(1, 1, 1, 1), width=8),
      batch_size=20,
      eval_batch_size=50,
      epochs=1,
      warmup_epochs=0,
      train_examples=500,
    ),
  )
  return config
