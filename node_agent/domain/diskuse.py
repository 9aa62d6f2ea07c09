"""What a run uses of the disk, in values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Held:
    """What the processes of a container were seen to have on disk."""

    unnamed: int = 0
    """Bytes in files without a name that are open or mapped."""
    written: int = 0
    """Bytes that its living processes have written to disks, including what was deleted again."""
    is_complete: bool = False
    """Whether every process could be looked into. False also when none was found."""


@dataclass(frozen=True, slots=True)
class RunUse:
    """What one run uses now, with the temporary folder of its job."""

    total: int
    """Bytes in its folders and in files without a name."""
    grown: int
    """How much of *total* came since the run began, as far as its beginning was seen."""
    written: int
    is_complete: bool
