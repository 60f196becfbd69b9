"""ResNet-34 on ImageNet with 5 workers (the paper's distributed setting).

    python -m data.prepare imagenet --data_dir=DATA --manual_dir=TARS
    python -m train.main --config=configs/imagenet.py --workdir=DIR --config.data_dir=DATA

The paper: 5 workers, batches of 32 images a worker, momentum SGD. Learning rate (that of He et al. scaled
to the batch), weight decay and the number of epochs are ours, since it does not name them. A GPU or TPU
is what this wants.
"""

from configs import default


def get_config():
  """ResNet-34, 21,797,672 parameters."""
  config = default.get_config()
  config.dataset = "imagenet2012"
  config.model.stages = (3, 4, 6, 3)
  config.model.stem = "imagenet"
  config.batch_size = 32
  config.eval_batch_size = 100
  config.density = 0.001
  config.learning_rate = 0.0625
  config.weight_decay = 1e-4
  config.epochs = 90
  config.data_threads = 16
  return config
