"""Data sets: where examples come from, and in which batches each worker sees them."""

from data.images import Images as Images
from data.images import load as load
from data.pipeline import epoch as epoch
from data.pipeline import shares as shares
