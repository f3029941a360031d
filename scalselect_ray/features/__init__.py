"""The feature store: commit, list, read."""

from scalselect_ray.features.store import FeatureStore, Summary, feature_table, features_of

__all__ = ["FeatureStore", "Summary", "feature_table", "features_of"]
