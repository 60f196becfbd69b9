"""Models, as Flax NNX modules that take all of their sizes as arguments.

1. ``functional``: a module as pure functions of its weights and its state.
2. ``resnet``: residual networks, for images.
3. ``lstm``: language models of words.
"""

from train.models import lstm as lstm
from train.models import resnet as resnet
from train.models.functional import init as init
from train.models.functional import rebuild as rebuild
from train.models.lstm import LSTM as LSTM
from train.models.resnet import ResNet as ResNet
