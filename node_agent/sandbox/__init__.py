"""Whole networks on one machine, coordinating server included: for demos, development and tests only."""
