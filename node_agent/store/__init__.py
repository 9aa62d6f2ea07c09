"""What the agent keeps on disk: the journal, the run folders, the lock and its sign of life."""
