"""Models, as Flax NNX modules that take all of their sizes as arguments."""

from train.models.resnet import ResNet as ResNet
