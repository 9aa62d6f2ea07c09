"""Stand-ins for what the agent talks to; they are passed in, nothing is patched."""
