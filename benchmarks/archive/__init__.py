"""Archiving, beside the project's own verified copy of the same files: `make bench-archive`."""
