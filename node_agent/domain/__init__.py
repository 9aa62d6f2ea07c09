"""What the agent decides, in pure code: standard library only, no I/O, no clock of its own."""
