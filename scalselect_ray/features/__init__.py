"""The feature store: commit, list, read."""

from scalselect_ray.features.store import DamagedFeaturesError, FeatureStore, Summary, feature_table, features_of

__all__ = ["DamagedFeaturesError", "FeatureStore", "Summary", "feature_table", "features_of"]
