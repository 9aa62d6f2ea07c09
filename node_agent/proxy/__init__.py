"""The algorithms' way to the server: one HTTP service in the isolated network."""
