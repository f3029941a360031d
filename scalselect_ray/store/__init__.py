"""What lies on disk: features, moments, subspaces, tables, runs, and what of it is garbage."""
