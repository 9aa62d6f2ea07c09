"""How inputs and results are written while they travel: encodings, keys, envelopes, long texts in files."""
