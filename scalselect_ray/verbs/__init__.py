"""What the verbs of the command line do, a module each. `run`, `report`, `export` and `demo` have theirs where their subject is."""
