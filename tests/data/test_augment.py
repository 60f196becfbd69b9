"""Augmentation against known pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from data import augment, imagenet


class _Fixed:
  """Gives known numbers where a generator would give random ones."""

  def __init__(self, moves=None, uniforms=None):
    self.moves, self.uniforms = moves, uniforms

  def integers(self, low, high, size):
    assert np.shape(self.moves) == size
    assert low <= np.min(self.moves)
    assert np.max(self.moves) < high
    return np.array(self.moves)

  def random(self, n):
    return np.array(self.uniforms[:n])


def test_crop_moves_pixels():
  image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
  moved = augment.crop(_Fixed(moves=[[0], [2]]), image, padding=1)
  # Down by one, left by one: the first row and the last column are new, and zero.
  np.testing.assert_array_equal(moved[0, ..., 0], [[0, 0, 0], [2, 3, 0], [5, 6, 0]])
  assert moved.dtype == np.uint8
  unmoved = augment.crop(_Fixed(moves=[[1], [1]]), image, padding=1)
  np.testing.assert_array_equal(unmoved, image)


def test_flip_mirrors_some():
  images = np.arange(12, dtype=np.uint8).reshape(2, 2, 3, 1)
  flipped = augment.flip(_Fixed(uniforms=[0.9, 0.1]), images)
  np.testing.assert_array_equal(flipped[0], images[0])
  np.testing.assert_array_equal(flipped[1, :, :, 0], [[8, 7, 6], [11, 10, 9]])


def _file(pixels, kind="PNG", mode=None, **options):
  image = Image.fromarray(np.asarray(pixels, np.uint8))
  file = io.BytesIO()
  (image.convert(mode) if mode else image).save(file, kind, **options)
  return file.getvalue()


def _ramp(height, width):
  """Red grows with the column, green with the row, on the scale of 0 to 255."""
  rows, columns = np.mgrid[:height, :width]
  red, green = 255 * (columns + 0.5) / width, 255 * (rows + 0.5) / height
  return np.stack([red, green, np.full_like(red, 7)], -1).round()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("height", "width"), [(256, 384), (600, 400), (90, 64), (2000, 1500)])
def test_evaluation_sees_the_middle(height, width, kind):
  options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
  (seen,) = imagenet.test_view([_file(_ramp(height, width), kind, **options)])
  assert (seen.shape, seen.dtype) == ((224, 224, 3), np.uint8)
  # The shorter side becomes 256, of which 16 are cut at each end; the other side loses more.
  scale = 256 / min(height, width)
  centres = np.arange(224) + 0.5
  for channel, size in ((0, width), (1, height)):
    along = 255 * ((size * scale - 224) / 2 + centres) / (size * scale)
    expected = along.reshape(1, -1) if channel == 0 else along.reshape(-1, 1)
    assert np.abs(seen[..., channel] - expected).max() < 4
  assert np.abs(seen[..., 2] - 7.0).max() < 4


def test_evaluation_of_256_pixels_copies_the_middle():
  pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
  np.testing.assert_array_equal(imagenet.test_view([_file(pixels)])[0], pixels[16:240, 16:240])


def test_training_crop_is_the_box_it_drew():
  height, width = 300, 420
  file = _file(_ramp(height, width))
  seen = imagenet.train_view(np.random.default_rng(5), [file] * 24)
  rng = np.random.default_rng(5)
  mirrored = 0
  for image in seen.astype(float):
    left, top, right, bottom = imagenet.random_box(rng, width, height)
    if rng.random() < 0.5:
      image, mirrored = image[:, ::-1], mirrored + 1
    centres = (np.arange(224) + 0.5) / 224
    red = 255 * (left + centres * (right - left)) / width
    green = 255 * (top + centres * (bottom - top)) / height
    assert np.abs(image[..., 0] - red.reshape(1, -1)).max() < 3
    assert np.abs(image[..., 1] - green.reshape(-1, 1)).max() < 3
  assert 4 < mirrored < 20


@pytest.mark.parametrize(("width", "height"), [(500, 375), (50, 400), (1000, 30), (1, 1)])
def test_boxes_lie_inside_and_cover_what_they_should(width, height):
  rng = np.random.default_rng(0)
  boxes = np.array([imagenet.random_box(rng, width, height) for _ in range(500)])
  left, top, right, bottom = boxes.T
  assert (left >= 0).all()
  assert (top >= 0).all()
  assert (right <= width).all()
  assert (bottom <= height).all()
  ratio, area = (right - left) / (bottom - top), (right - left) * (bottom - top) / (width * height)
  if min(width, height) > 100:
    assert 0.74 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.35
    assert 0.079 < area.min() < 0.12
    assert area.max() > 0.9
  else:  # no box of the wanted area fits most of the time
    assert ((ratio > 0.7) & (ratio < 1.4)).all()


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P")])
def test_other_colours_become_rgb(kind, mode):
  grey = np.full((300, 300, 3), 153)  # which the usual palette has
  (seen,) = imagenet.test_view([_file(grey, kind, mode)])
  assert np.abs(seen - 153.0).max() < 4
