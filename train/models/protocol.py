"""What a model is to a task: a Flax NNX module that is made of a config's ``model`` and of the data's sizes."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax

from configs.schema import Field


class ImageModel(Protocol):
  """Names what images show.

  Its constructor takes by name what ``fields`` declares, and ``channels``, ``num_classes`` and ``rngs``. Its
  variables are of the kinds ``nnx.Param`` and ``nnx.BatchStat``; the latter may change in training.

  Attributes:
    fields: what it takes of a config's ``model``.
  """

  fields: ClassVar[Mapping[str, Field]]

  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """Logits (n, num_classes) of images (n, height, width, channels) of mean 0 and deviation 1; both float32."""
    ...


class LanguageModel(Protocol):
  """Predicts each next word of a text.

  Its constructor takes by name what ``fields`` declares, and ``vocabulary`` and ``rngs``. Its variables are of the
  kind ``nnx.Param``.

  Attributes:
    fields: what it takes of a config's ``model``.
    total_over_time: whether the loss of a window is the sum over its words, not their mean.
  """

  fields: ClassVar[Mapping[str, Field]]
  total_over_time: ClassVar[bool]

  def start(self, count: int) -> Any:
    """What is carried into the first window of so many streams.

    With ``()`` windows have nothing to do with each other, and are read from anywhere in a text. Otherwise
    each goes on where the one before it ended. Called when no variable has a value yet.
    """
    ...

  def __call__(
    self, words: jax.Array, carry: Any, key: jax.Array | None = None
  ) -> tuple[jax.Array, Any]:
    """Logits (batch, time, vocabulary) of the word after each of words (batch, time), and what is carried on.

    Without a key nothing is dropped.
    """
    ...
