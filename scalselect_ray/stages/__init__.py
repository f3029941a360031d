"""The stages of the method on Ray, a file a row of README's table. `job.py` calls them one after the other."""
