"""What an algorithm says when it runs into a limit of this node, and which limit that is.

Owns the tell-tale words of kernels and languages. Must not know how a log is kept or what becomes of the sentence.
"""

from collections.abc import Callable
from typing import Final

from node_agent.domain.container import ContainerLimits

_Sentence = Callable[[ContainerLimits], str]

_NO_SPACE: Final = ("no space left on device", "disk quota exceeded")
_TELL_TALES: Final[tuple[tuple[tuple[str, ...], _Sentence], ...]] = (
    (
        ("file too large", "file size limit exceeded"),
        lambda limits: f"files of at most {limits.file_size:,} bytes (limits.output_size)",
    ),
    (
        ("resource temporarily unavailable", "can't start new thread", "cannot fork", "unable to fork"),
        lambda limits: f"at most {limits.pids:,} processes and threads at a time (limits.pids)",
    ),
    (
        _NO_SPACE,
        lambda limits: f"at most {limits.tmp_size:,} bytes in /tmp (limits.tmp_size)",
    ),
    (
        ("too many open files",),
        lambda limits: f"at most {limits.open_files:,} open files per process (limits.open_files)",
    ),
    (
        ("memoryerror", "cannot allocate memory", "std::bad_alloc", "cannot allocate vector"),
        lambda limits: f"at most {limits.memory:,} bytes of memory (limits.memory)",
    ),
    (
        ("read-only file system",),
        lambda _: "writing below /tmp, /mnt/tmp and the run's own folder only",
    ),
    (
        ("permission denied", "operation not permitted"),
        lambda _: "running as a user without rights only, not as the image's own (hardening.relax)",
    ),
    (
        ("name or service not known", "temporary failure in name resolution", "network is unreachable"),
        lambda _: "no network but the server's calls through the proxy",
    ),
)


FULL_DISK: Final = 64 * 1024 * 1024
"""Less than so many free bytes, and a disk was most likely full a moment ago."""
_ON_THE_DISK: Final = tuple(f"{words}: '/mnt/" for words in _NO_SPACE)
"""What lies there is on this machine's own disk; /tmp is not."""


def likely_limit(log: str, limits: ContainerLimits, *, free_disk: int) -> str:
    """Say which limit the end of a crashed algorithm's log points to; empty when to none.

    *free_disk* are the bytes that may still be written where runs have their folders.
    """
    said = log.lower()
    if any(words in said for words in (_NO_SPACE if free_disk < FULL_DISK else _ON_THE_DISK)):
        return (
            " By its log it found no space: the disk of this node is full, or was, which is no limit of the algorithm's."
            " Whoever runs the node has to free some space; then send the task again."
        )
    found = [sentence(limits) for words, sentence in _TELL_TALES if any(word in said for word in words)]
    return f" By its log it may have met a limit: this node allows {'; '.join(found)}." if found else ""
