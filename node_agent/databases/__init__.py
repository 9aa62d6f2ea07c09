"""The data owner's databases: which there are, who may read them, what of them is shared."""
