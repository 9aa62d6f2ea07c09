"""The coordinating server's side: REST calls, tokens, the socket.

Nothing here knows engines, policy or what a run does on this machine.
"""
