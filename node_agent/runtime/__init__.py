"""The container engine: images, containers and the isolated network, behind the ports `Runtime` and `Network`.

Only this package talks to Docker or sets firewall rules. It knows containers, not runs: what a run is, who asked for
it and what it computes is none of its business.
"""
