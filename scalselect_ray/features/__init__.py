"""The feature store: commit, list, read."""

from scalselect_ray.features.store import FeatureStore, feature_table, features_of

__all__ = ["FeatureStore", "feature_table", "features_of"]
