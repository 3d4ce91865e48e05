"""The C library's memory allocator, set so that a training step's large buffers are not mapped and
cleared anew each time, and lie in huge pages.
"""

import ctypes
import os
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14  # of madvise(2)


def keep_freed_memory() -> bool:
    """Makes glibc keep what is freed, grow in large steps and use huge pages; returns whether it
    could. Does nothing under another C library.

    With glibc's defaults each large buffer is a new mapping, and a step on a CPU takes hundreds of
    thousands of page faults. The price is a larger resident size. Call it before threads allocate.

    It is the main thread's heap that keeps large buffers: a heap of another thread holds at most
    64 MB, and what is larger is still mapped anew. So `process.prepare` also has JAX compute in the
    calling thread. One heap for all threads (`share_one_heap`) keeps them too, but there they wait
    for each other's small blocks, most of all once a compiler has left it in pieces.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 256 << 20))
    kept = [mallopt(parameter, value) for parameter, value in settings]
    _ask_for_huge_pages(libc)
    return all(kept)


def share_one_heap() -> None:
    """Has all threads take the one heap that keeps large buffers, after `keep_freed_memory`.

    It is for one of several processes: what they compute together JAX starts in threads of its own,
    whatever thread calls it. Call it before JAX touches a device, as its threads begin then.
    """
    ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Stretches the heap over half of the machine's memory and asks for huge pages there.

    glibc's own setting (`glibc.malloc.hugetlb`) is read before the process starts. Address space
    alone is taken: a page costs memory when it is written to. Where the system grants none, or has
    no huge pages, nothing changes.
    """
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    heap = libc.malloc(size)
    if heap is None:
        return
    start = -(-heap // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(start, heap + size - start, _MADV_HUGEPAGE)
    libc.free(heap)
