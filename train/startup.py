"""Preparations before JAX is imported."""

import os
import platform
import sys

# Huge pages for the activations of a step; freed memory is kept for the next step.
_TUNABLES = 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=68719476736'


def use_huge_pages() -> None:
    """Restarts this process with glibc set for huge pages, unless they are set already.

    XLA:CPU allocates its memory anew in every step, and without huge pages page faults take more than a tenth of it.
    glibc reads these settings at the start of a process only. Call this before other imports: the restart repeats them.
    """
    if platform.libc_ver()[0] == 'glibc' and 'GLIBC_TUNABLES' not in os.environ:
        os.environ['GLIBC_TUNABLES'] = _TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
