"""Models, as Flax NNX modules that take all of their sizes as arguments.

1. ``protocol``: what a model of images, and one of language, has to be.
2. ``functional``: a module as pure functions of its weights and its state.
3. ``layers``: what several models are made of.
4. ``resnet``: residual networks, for images.
5. ``lstm``: language models of words, which carry their state on.
6. ``transformer``: language models of words or characters, which see a window.

A config's ``model.name`` is one of those below, or "package.module:name" of one's own.
"""

from train.models import lstm as lstm
from train.models import resnet as resnet
from train.models import transformer as transformer
from train.models.functional import init as init
from train.models.functional import rebuild as rebuild
from train.models.lstm import LSTM as LSTM
from train.models.protocol import ImageModel as ImageModel
from train.models.protocol import LanguageModel as LanguageModel
from train.models.resnet import ResNet as ResNet
from train.models.transformer import Transformer as Transformer

IMAGE_MODELS: dict[str, type] = {"resnet": ResNet}
LANGUAGE_MODELS: dict[str, type] = {"lstm": LSTM, "transformer": Transformer}
