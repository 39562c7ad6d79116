"""What has to happen before JAX is imported."""

import os
import platform
import sys

# Huge pages for a step's activations, and freed memory kept for the next step.
_TUNABLES = 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=68719476736'


def use_huge_pages() -> None:
    """Starts this process anew with glibc set for huge pages, unless it is set already.

    XLA:CPU allocates a step's memory afresh every time and spends a good tenth of the step on page faults otherwise.
    glibc reads these settings at the start of a process only. Call it first of all: everything is imported again.
    """
    if platform.libc_ver()[0] == 'glibc' and 'GLIBC_TUNABLES' not in os.environ:
        os.environ['GLIBC_TUNABLES'] = _TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
