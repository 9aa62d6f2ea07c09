"""`python -m node_agent` is the same as `node-agent`."""

import sys

from node_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
