"""``python -m lewel_kernels.build``: compile the kernels ahead of their first use, and say what was built and where."""

from __future__ import annotations

import sys

from lewel_kernels import native
from lewel_kernels.native import builder


def main() -> int:
    """Builds, loads and reports. Returns 1, with the reason on stderr, if the extension cannot be used."""
    try:
        build = builder.build()
        info = native.build_info()
    except RuntimeError as error:
        print(f"The cpu backend cannot be built: {error}.", file=sys.stderr)
        return 1
    state = "was there already" if build.seconds is None else f"took {build.seconds:.1f} s"
    print(f"cpu kernels: {build.library} ({state})")
    for name, value in info.items():
        print(f"  {name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
