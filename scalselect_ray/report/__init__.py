"""The page people look at: numbers of a run, a few of its samples, one HTML file."""
