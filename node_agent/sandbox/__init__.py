"""A coordinating server, and later whole networks, on one machine: for demos, development and tests only."""
