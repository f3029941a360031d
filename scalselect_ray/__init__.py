"""ScalSelect (arXiv 2602.11636), training-free multimodal data selection, as a distributed batch job on Ray."""

__version__ = "0.1.0"
