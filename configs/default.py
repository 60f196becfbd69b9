"""An experiment with all fields at their defaults, from which every config starts."""

from typing import Any

from ml_collections import ConfigDict, config_dict

from configs.fields import FIELDS


def get_config() -> Any:
  """The fields that every config has; ``configs/fields.py`` says what they mean."""
  return ConfigDict(
    {
      name: config_dict.FieldReference(field.default, field_type=field.kind)
      if field.optional
      else field.default
      for name, field in FIELDS.items()
    }
  )
