"""What the machine refuses, in one line: memory, disks that are full, folders that may not be written to."""

from __future__ import annotations

import errno

OF_THE_MACHINE = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG, errno.ENOSPC, errno.EPERM, errno.EROFS,
}  # fmt: skip
"""Numbers of an `OSError` whose message says all; any other is a mistake of ours, and shows where."""


def told(error: BaseException) -> str | None:
    """What was refused and what to do, if that is what an error says; else None."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror}" if error.errno in OF_THE_MACHINE else None
    if is_of_memory(error):
        return f"not enough memory: {str(error).partition(chr(10))[0]}; take smaller batches or widths"
    return None


def is_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, for which PyTorch has no error of its own."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
