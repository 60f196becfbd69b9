"""What a network sees of ImageNet's photographs, from the bytes of their files to 224×224 pixels.

Decoding is most of the work. JPEG decoders can halve the resolution as they decode, several times over and
at a fraction of the cost: that is asked for as far as the crop keeps more pixels than it needs.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

SIZE = 224
RESIZED = 256  # the shorter side in evaluation, of which the middle 224 are seen

Box = tuple[float, float, float, float]


def random_box(rng: np.random.Generator, width: int, height: int) -> Box:
  """Where to crop: 8 to 100 % of the area, between 3:4 and 4:3 (Szegedy et al., 2014).

  Args:
    rng: where the choice comes from.
    width: of the image, in pixels.
    height: likewise.

  Returns:
    Left, top, right, bottom.
  """
  for _ in range(10):
    area = width * height * rng.uniform(0.08, 1)
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left, top = rng.integers(0, [width - w + 1, height - h + 1])
      return int(left), int(top), int(left) + w, int(top) + h
  # Very long or very tall images: as much of the middle as the ratio allows.
  return _middle(width, height, min(width, height * 4 / 3), min(height, width * 4 / 3))


def _middle(width: int, height: int, w: float, h: float) -> Box:
  left, top = (width - w) / 2, (height - h) / 2
  return left, top, left + w, top + h


def _cropped(image: Image.Image, box: Box) -> np.ndarray:
  width, height = image.size
  left, top, right, bottom = box
  # At least SIZE pixels must be left of the box; other formats than JPEG ignore this.
  image.draft("RGB", (int(SIZE * width / (right - left)), int(SIZE * height / (bottom - top))))
  x, y = image.size[0] / width, image.size[1] / height
  resized = image.convert("RGB").resize(
    (SIZE, SIZE), Image.Resampling.BILINEAR, box=(left * x, top * y, right * x, bottom * y)
  )
  return np.asarray(resized)


def train_view(rng: np.random.Generator, files: Sequence[bytes]) -> np.ndarray:
  """A random part of each image, resized, and mirrored left to right half of the time.

  Args:
    rng: where the choices come from.
    files: n images as the bytes of their files.

  Returns:
    Shape (n, 224, 224, 3), uint8.
  """

  def view(image: Image.Image) -> np.ndarray:
    pixels = _cropped(image, random_box(rng, *image.size))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels

  return _views(files, view)


def test_view(files: Sequence[bytes]) -> np.ndarray:
  """The middle 224×224 pixels of each image whose shorter side was resized to 256.

  Args:
    files: n images as the bytes of their files.

  Returns:
    Shape (n, 224, 224, 3), uint8.
  """

  def view(image: Image.Image) -> np.ndarray:
    side = min(image.size) * SIZE / RESIZED
    return _cropped(image, _middle(*image.size, side, side))

  return _views(files, view)


def _views(files: Sequence[bytes], view: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
  seen = np.empty((len(files), SIZE, SIZE, 3), np.uint8)
  for row, file in zip(seen, files, strict=True):
    with Image.open(io.BytesIO(file)) as image:
      row[:] = view(image)
  return seen
