"""HTTP sources that a machine reads by its own curl."""
