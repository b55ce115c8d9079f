"""The mutation check: faults planted one at a time, each of which the tests must catch. Not part of CI.

.venv/bin/python -m tests.mutations [-k WORD]
"""
