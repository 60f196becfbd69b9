"""The LSTM language model on Penn Treebank with 5 workers: Tables IV (distributed) and V (federated).

    python -m data.prepare ptb --data_dir=DATA
    python -m train.main --config=configs/ptb.py:federated,rtopk,0.95 --workdir=DIR --config.data_dir=DATA

After the colon stands the row, ``SETTING,METHOD[,COMPRESSION]``; without it, all methods at 99.9 % are
compared in the distributed setting. ``--config.variant=small`` is for two CPU cores: 2 layers of 64 units,
100,000 of the words, 4 epochs, two to three minutes a row.

The paper's: 5 workers of 20 streams and 35 words, SGD without momentum, clipped gradients, r/k = 5, 5 epochs
of warm-up of which the last is at the final density, tied embeddings; federated, one local epoch a round
and no error feedback. The rest is the large model of Zaremba et al. (2014), whose numbers these are, and
that the score is that of the last epoch is ours. Hardware of the full variant: one GPU or TPU, on which it
has not been run. The paper's figures are not at hand (docs/paper.md).
"""

from ml_collections import ConfigDict

from configs import default, rows, variants


def get_config(row: str | None = None):
  """A row of Table IV or V, or a comparison of all methods.

  Args:
    row: such as "distributed,topk,0.99".

  Returns:
    The config.
  """
  config = default.get_config()
  config.dataset = "ptb"
  config.model = ConfigDict(
    dict(layers=2, units=1500, dropout=0.65, init_scale=0.04, dtype="float32")
  )
  config.unroll = 35
  config.density = 0.001
  config.momentum = 0.0
  config.learning_rate = 1.0
  config.schedule = "zaremba"
  rows.apply(config, row)
  federated = config.setting == "federated"
  if federated:
    # What a worker does not send is lost, so that a sum over few senders must not be divided by all.
    config.error_feedback, config.average = False, "senders"
  variants.vary(
    config,
    full=dict(
      model=dict(units=1500, dropout=0.65, init_scale=0.04),
      batch_size=20,
      eval_batch_size=10,
      clip_norm=10.0,
      epochs=55,
      constant_epochs=14,
      decay=1.15,
      warmup_epochs=4,
    ),
    small=dict(
      model=dict(units=64, dropout=0.0, init_scale=0.1),
      batch_size=4,
      eval_batch_size=50,
      clip_norm=5.0,
      epochs=4,
      constant_epochs=3,
      decay=2.0,
      warmup_epochs=0,
      train_examples=100_000,
      local_steps=14 if federated else None,
    ),
  )
  return config
