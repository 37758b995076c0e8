"""Character models: hand-written loops over cells, and torch's recurrent modules."""
