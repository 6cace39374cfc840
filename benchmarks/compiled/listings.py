"""What compilers print, read: `ptxas -v`, SASS and the names in it, PTX, and Triton's TTGIR."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any


def resources(log: str) -> dict[str, dict[str, int]]:
    """What `ptxas -v` says of each kernel, by mangled name. What functions that it calls take is counted as its own."""
    _, *parts = re.split(r"Compiling entry function '([^']+)' for 'sm_\w+'", log)
    found = {}
    for name, text in zip(parts[::2], parts[1::2], strict=True):

        def number(pattern: str, text: str = text) -> int:
            return max((int(digits) for digits in re.findall(pattern, text)), default=0)

        found[name] = {
            "registers": number(r"Used (\d+) registers"),
            "shared": number(r"(\d+) bytes smem"),  # static: what a launch asks for is not known here
            "stack": number(r"(\d+) bytes (?:stack frame|cumulative stack size)"),
            "spill_stores": number(r"(\d+) bytes spill stores"),
            "spill_loads": number(r"(\d+) bytes spill loads"),
        }
        if not found[name]["registers"]:
            raise RuntimeError(f"ptxas -v does not say how many registers {name} uses: {text}")
    return found


_HMMA = re.compile(r"\b[HDIQ]G?MMA(?=\.)")


def tensor_cores(sass: str) -> dict[str, dict[str, int]]:
    """How often nvdisasm shows each tensor-core instruction in each kernel, by the kernel's mangled name."""
    _, *parts = re.split(r"\.section\s+\.text\.([\w$.]+)", sass)
    return {
        name: dict(sorted(Counter(_HMMA.findall(text)).items()))
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def demangled(name: str) -> str:
    """The C++ name of a kernel or type from a compiler's mangled one. Raises ValueError for any other name."""
    demangle, free = ctypes.CDLL("libstdc++.so.6").__cxa_demangle, ctypes.CDLL(None).free
    demangle.restype, free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    pointer = demangle(name.encode(), None, None, ctypes.byref(ctypes.c_int()))
    if not pointer:
        raise ValueError(f"{name!r} is no name that a compiler makes")
    try:
        return ctypes.string_at(pointer).decode()
    finally:
        free(pointer)


def short(name: str) -> str:
    """`void lewel::cuda::f<lewel::cuda::Half, (E)1>(int)` -> `f<Half, (E)1>`."""
    depth = 0
    for i, character in enumerate(name):
        if character == "(" and depth == 0:
            name = name[:i]
            break
        depth += (character == "<") - (character == ">")
    return name.removeprefix("void ").replace("lewel::cuda::", "")


_MMA = re.compile(r"\b(mma\.sync|wgmma)(?=\.aligned|\.mma_async)")
_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bfsu](\d+)\s")
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\S* *\[[^]]*\], *\[[^]]*\], *(0x[0-9a-f]+|\d+)")
_BULK = re.compile(r"\bcp\.async\.bulk\.(?:tensor\.\w+\.)?shared::cluster\.global")  # TMA, in units of 16 bytes


def instructions(ptx: str) -> dict[str, dict[Any, int]]:
    """Counts of tensor-core instructions, and of global loads and stores by the bytes that one thread moves."""
    sizes: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for what, length, bits in _ACCESS.findall(ptx):
        sizes[what][int(length or 1) * int(bits) // 8] += 1
    sizes["ld"].update(int(size, 0) for size in _COPY.findall(ptx))
    sizes["ld"].update(16 for _ in _BULK.findall(ptx))
    return {
        "tensor_cores": dict(Counter(_MMA.findall(ptx))),
        "loads": dict(sorted(sizes["ld"].items())),
        "stores": dict(sorted(sizes["st"].items())),
    }


_ALLOCATION = re.compile(
    r"(%\w+) = ttg\.local_alloc\b(?: :.* !ttg\.memdesc<(\d+)x)?"
)  # with buffers, or filled where it is
_VIEW = re.compile(r"(%\w+) = ttg\.memdesc_\w+ (%\w+)")
_ASYNC_COPY = re.compile(r"\bttg\.async_copy_global_to_local %[\w#]+, (%\w+)")
_PRODUCT = re.compile(r"\bttng\.warp_group_dot (%\w+)\S*, (%\w+)\S*,")
_DEFINED = re.compile(r"\s*(%\w+)(?::\d+)? =")
_PENDING = re.compile(r"\bttng\.warp_group_dot_wait\b.*\bpendings = (\d+)")


def buffers(ttgir: str) -> list[list[int]]:
    """[buffers, least needed] of each operand that products still read while their loop goes on.

    ttgir is Triton's listing of one kernel. On sm_90 a loop may leave its last products pending and go on to write what
    a later step multiplies. With c copies to shared memory under way before the loop, step i copies for step i + c. So
    the steps i to i + c need a buffer each, and so does every step before i whose products are still pending in step i.
    What a step computes itself is written at its start, and has one buffer. Triton has given fewer than it takes
    (docs/backends.md), and no result shows it unless the timing is bad.
    """
    lines = ttgir.splitlines()
    there: dict[str, int] = {}  # buffers of an allocation
    allocation: dict[str, str] = {}  # that a view is of
    for line in lines:
        if found := _ALLOCATION.search(line):
            there[found[1]] = int(found[2] or 1)
        elif found := _VIEW.search(line):
            allocation[found[1]] = allocation.get(found[2], found[2])
    result = []
    for before, loop in _innermost_loops(lines):
        copied = [allocation[found[1]] for line in before if (found := _ASYNC_COPY.search(line))]
        products = [found.groups() for line in loop if (found := _PRODUCT.search(line))]
        pending = [int(found[1]) for line in loop if (found := _PENDING.search(line))]
        if not products or not pending or not pending[-1]:
            continue
        computed = {found[1] for line in loop if (found := _DEFINED.match(line))}
        for x in dict.fromkeys(allocation.get(x, x) for product in products for x in product):
            if x in there or x in computed:
                ahead = 1 if x in computed else copied.count(x)
                result.append([there.get(x, 1), ahead + -(-pending[-1] // len(products))])
    return sorted(result)


def _innermost_loops(lines: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """For each loop that holds no other: the lines before it, and its own."""
    begin, end = 0, ""
    for i, line in enumerate(lines):
        if "scf.for" in line:
            begin, end = i, line[: len(line) - len(line.lstrip())] + "}"
        elif end and line.startswith(end):
            yield lines[:begin], lines[begin:i]
            end = ""
