"""The fields of a config, by their dotted names."""

import ml_collections


def flatten(config, prefix=''):
  """{'section.field': value} of a (nested) config."""
  flat = {}
  for key in config:
    value = config[key]
    if isinstance(value, (ml_collections.ConfigDict, dict)):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat
