"""Data sets: where examples come from, and in which batches each worker sees them."""

from data.images import IMAGES as IMAGES
from data.images import Images as Images
from data.images import Split as Split
from data.loaders import ImageSource as ImageSource
from data.loaders import Source as Source
from data.loaders import StreamSource as StreamSource
from data.loaders import WindowSource as WindowSource
from data.loaders import load as load
from data.loaders import load_test as load_test
from data.loaders import shares as shares
from data.text import TEXTS as TEXTS
from data.text import Text as Text
