"""The compute API: an optional listener for signed requests of researchers who hold nothing but a key pair.

Owns its routes, signatures, nonces, tokens, jobs and grants. A job becomes an ordinary run; nothing here starts
containers, knows the engine, or speaks with the coordinating server.
"""
