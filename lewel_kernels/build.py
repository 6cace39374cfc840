"""``python -m lewel_kernels.build``: compile the kernels ahead of their first use, and say what was built and where."""

from __future__ import annotations

import argparse
import sys

from lewel_kernels import native
from lewel_kernels.native import builder
from lewel_kernels.native.targets import TARGETS


def main() -> int:
    """Builds, loads and reports. Returns 1, with the reason on stderr, if the extension cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m lewel_kernels.build",
        description="Compile the kernels of the cpu backend ahead of their first use, for this machine's processor.",
        epilog="What is built is kept in LEWEL_CACHE_DIR and found there by every later process. CXX names the C++ "
        "compiler, CUDA_HOME the CUDA toolkit, TORCH_CUDA_ARCH_LIST the GPUs, and MAX_JOBS bounds the processes.",
    )
    parser.add_argument(
        "--cuda", action="store_true", help="compile those of the cuda backend instead; this takes nvcc, and no GPU"
    )
    name = "cuda" if parser.parse_args().cuda else "cpu"
    try:
        build = builder.build(TARGETS[name])
        info = native.build_info(name)
    except RuntimeError as error:
        print(f"The {name} backend cannot be built: {error}.", file=sys.stderr)
        return 1
    state = "was there already" if build.seconds is None else f"took {build.seconds:.1f} s"
    print(f"{name} kernels: {build.library} ({state})")
    for key, value in info.items():
        print(f"  {key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
