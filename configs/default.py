"""An experiment with all fields at their defaults, from which every config starts."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from configs.fields import FIELDS
from configs.schema import Field


def get_config() -> Any:
  """The fields that every config has; ``configs/fields.py`` says what they mean."""
  return ConfigDict(_values(FIELDS))


def _values(fields: Mapping[str, Field]) -> dict[str, Any]:
  return {name: _value(field) for name, field in fields.items()}


def _value(field: Field) -> Any:
  if field.fields is not None:
    return _values(field.fields)
  if field.optional:
    return config_dict.FieldReference(field.default, field_type=field.kind)
  return field.default
