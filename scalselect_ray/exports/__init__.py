"""A run's selection in the files that trainers read."""

from scalselect_ray.exports.flow import export
from scalselect_ray.exports.formats import FORMATS

__all__ = ["FORMATS", "export"]
