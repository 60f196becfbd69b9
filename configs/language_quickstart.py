"""Four ways of exchanging gradients, compared on the language reference that Python carries.

    python -m train.main --config=configs/language_quickstart.py --workdir=DIR

No download: the text is the one that ``help()`` shows. About two minutes on two cores.
"""

from configs import ptb, variants


def get_config():
  """A small LSTM, 5 workers, no compression against rTop-k, top-k and random-k at 99 %."""
  config = variants.settle(ptb.get_config())
  config.dataset = "python_docs"
  config.model.units = 64
  config.model.dropout = 0.1
  config.model.init_scale = 0.1
  config.batch_size = 8
  config.unroll = 20
  config.density = 0.01
  config.epochs = 5
  config.warmup_epochs = 1
  config.constant_epochs = 3
  config.decay = 2.0
  return config
