"""A run's selection in the files that trainers read: the formats, and rows of the corpus as they want them."""

from scalselect_ray.exports.formats import FORMATS

__all__ = ["FORMATS"]
