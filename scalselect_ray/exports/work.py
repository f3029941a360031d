"""One export: what is exported, how and to where. It travels to the workers."""

from dataclasses import dataclass

from scalselect_ray.exports.base import Format, Images
from scalselect_ray.exports.target import Identity
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.layout import RunFolder


@dataclass(frozen=True)
class Export:
    """What is exported, how and to where."""

    run_id: str
    folder: RunFolder  # of the run
    name: str
    format: Format
    mode: Images | None
    target: str
    raw: bool
    store: FeatureStore  # of the run's extractor

    @property
    def identity(self) -> Identity:
        known = {"run_id": self.run_id, "to": self.name, "images": self.mode}
        return {**known, "raw": True} if self.raw else known
