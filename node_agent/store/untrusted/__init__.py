"""Folders that algorithms can write to, while they may be doing so.

An algorithm, or a sibling to which it passed a descriptor of its folder, can exchange any name in there between two
system calls. Therefore nothing is checked by name and used by name afterwards:

- A folder is reached from a folder of ours, component by component, without following links, and is then held open.
- A file is opened once, its kind is checked on the descriptor, and what is read or changed is that descriptor.
- A result is copied into a file of ours. No file that an algorithm can reach is renamed into a folder of ours.
- Nothing is opened that could block (O_NONBLOCK), and every walk has a bound.

`opening` opens, `copying` copies out, `giving` creates and hands over, `trees` measures and removes. The callers, which
own the names, are `store.rundir` and `compute.results`.
"""
