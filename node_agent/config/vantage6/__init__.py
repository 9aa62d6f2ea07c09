"""The way over from a vantage6 version 4 node: its configuration read, ours written.

keys        every key of the old configuration, and what becomes of it
oldfile     the old file as a tree, in whichever shape it has
draft       the new configuration while it is made, with the reasons beside it
patterns    regular expressions as globs, where both mean the same
places      server, state, keys of the old node
sources     databases, services, ways out
policies    what may run
habits      logs, sharing, images, the rest
sheet       the draft as YAML with comments
moving      all of it in one call
"""
