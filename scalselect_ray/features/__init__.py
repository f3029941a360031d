"""The feature store: commit, list, read."""

from scalselect_ray.features.store import COUNTS, FeatureStore, feature_table, features_of

__all__ = ["COUNTS", "FeatureStore", "feature_table", "features_of"]
