"""The node agent: runs algorithms beside the data of one organization for one collaboration."""

__version__ = "0.1.0"
