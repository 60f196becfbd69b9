"""The LSTM language model on Penn Treebank with 5 workers (the paper's distributed setting).

    python -m data.prepare ptb --data_dir=DATA
    python -m train.main --config=configs/ptb.py --workdir=DIR --config.data_dir=DATA

The paper: 5 workers of 20 streams and 35 words, SGD without momentum, clipped gradients, 5 epochs at a
higher density. The rest is the large model of Zaremba et al. (2014), whose numbers these are. A GPU or TPU
is what this wants; ``--config.model.units=128 --config.model.dropout=0.0`` is a small variant.
"""

from ml_collections import ConfigDict

from configs import default


def get_config():
  """2 layers of 1,500 units, tied embeddings: 51,022,000 parameters."""
  config = default.get_config()
  config.dataset = "ptb"
  config.model = ConfigDict(
    dict(layers=2, units=1500, dropout=0.65, init_scale=0.04, dtype="float32")
  )
  config.batch_size = 20
  config.unroll = 35
  config.eval_batch_size = 10
  config.density = 0.001
  config.momentum = 0.0
  config.clip_norm = 10.0
  config.learning_rate = 1.0
  config.schedule = "zaremba"
  config.epochs = 55
  return config
