"""Benchmarks of a large catalogue."""
