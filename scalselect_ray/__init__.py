"""ScalSelect (arXiv 2602.11636), training-free multimodal data selection, as a distributed batch job on Ray.

From Python: `leverage_scores` (features to scores), `represent` (samples to features), `AddFeatures` (the same inside
Ray Data), `run` (the whole job). They are loaded when they are first asked for: importing this package costs next to
nothing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalselect_ray.api import AddFeatures, leverage_scores, represent, run
    from scalselect_ray.config import ExtractorConfig, JobConfig

__version__ = "0.2.0"

__all__ = ["AddFeatures", "ExtractorConfig", "JobConfig", "__version__", "leverage_scores", "represent", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"scalselect_ray.{'config' if name.endswith('Config') else 'api'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
