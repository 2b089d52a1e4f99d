"""How the C library keeps the memory of tensors on a CPU. Knows nothing of torch.

glibc gives freed blocks back to the system only above a size that grows, up to 32 MB, with the blocks that
are freed. All others stay in its heap, where the activations of a step leave gaps that those of the next one
do not fit: small runs held up to half as much again as their tensors. A block given back has to be cleared
when it is asked for again, page by page; where page faults are dear, as in many virtual machines, steps take
up to twice as long.
"""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Blocks of at least so many bytes go back as soon as they are freed. Of smaller ones there are few at a time.
_LEAST_BYTES = 1 << 18
# So much may stay unused at the end of the heap.
_SPARE_BYTES = 1 << 24


def return_freed_blocks() -> bool:
    """Let this process give freed blocks back to the system at once, from now on.

    Returns:
        Whether it does: only glibc can be told so.
    """
    if not sys.platform.startswith("linux"):
        return False
    choose = getattr(ctypes.CDLL(None), "mallopt", None)  # not in other C libraries
    if choose is None:
        return False
    return bool(choose(_MMAP_THRESHOLD, _LEAST_BYTES)) and bool(choose(_TRIM_THRESHOLD, _SPARE_BYTES))
