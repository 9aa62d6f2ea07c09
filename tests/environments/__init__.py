"""Whole machines for tests: a fresh system of another release, with nothing of this one but its kernel."""
