"""Weights below the models: the registry, the file format, and how files are fetched and verified."""
