"""Attacks with real parts: the real engine, the vantage6 server and its client, and one hostile image with many faces.

Each test tries something that a hostile algorithm, server, researcher or local user could do, says so in its name or
docstring, and checks what holds. `make hostile` runs them alone and for longer; `make test` runs them too.

    faces.py                the hostile image: one program that does what its input says
    siege.py                an agent as root or as the service's ordinary user, and the people who send it tasks
    peer.py                 the same program on vantage6's own node and on ours (`make hostile-peer`)
    test_system_calls.py    system calls that no analysis needs, and analyses that need the others
    test_two_users.py       two people's runs at once with everything one can leave or search for
    test_outputs.py         outputs that are no ordinary files

What is tried elsewhere and not repeated here: `tests/integration/test_isolation.py` (host, neighbours, the probe),
`test_namespaces.py` (namespaces kept ready), `test_proxy.py` (the parser of the proxy), `tests/interop/test_isolation.py`
(another run's files, the proxy's routes), `test_policies.py` (policy, moved tags), `tests/unit/test_verdict.py` and
`test_patterns.py` (spellings of images).
"""
