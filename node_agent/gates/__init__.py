"""The ways out of the isolated network that the owner opened, and nothing when nothing is opened.

leash       the program that ties a child to the agent's life
child       a program that is kept running
egress      the filtering proxy for places outside
visitors    which run stands behind an address, and may it
forwarder   database servers, one port for each
ways        how a server is reached: directly, in a container, through a tunnel
tunnel      the secure shell's client as a way to another network
gates       all of them together

Every gate is shut until a rule opens it. What must be known of runs and containers is asked through callables: the room
knows no engine, no journal and no configuration file.
"""
