"""The file system of the host where the mover runs."""
