"""ResNet-18 on CIFAR-10 with 5 workers (the paper's distributed setting).

    python -m data.prepare cifar10 --data_dir=DATA
    python -m train.main --config=configs/cifar10.py --workdir=DIR --config.data_dir=DATA

The paper: 5 workers, batches of 128 images a worker, momentum SGD. Learning rate, weight decay and the
number of epochs are ours, since it does not name them. A GPU or TPU is what this wants: two CPU cores
take about half a minute a step, and ``--config.max_steps=3 --config.methods='("rtopk",)'`` shows that it
runs.
"""

from configs import default


def get_config():
  """ResNet-18 with the stem for small images, 11,173,962 parameters."""
  config = default.get_config()
  config.dataset = "cifar10"
  config.learning_rate = 0.1
  config.weight_decay = 5e-4
  config.epochs = 150
  return config
