"""Fuzzing of everything that reads data from outside: a small target each, and a corpus that the unit tests replay."""
