"""``python tests/emulation sm_80``: build the emulation; with ``-m MODULE ...``, run a module with it in force."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    tests = Path(__file__).resolve().parent.parent
    sys.path[:1] = [str(tests), str(tests.parent)]
    import emulation
    from lewel_kernels import native

    match sys.argv[1:]:
        case [name] if name in emulation.GPUS:
            print(native.build_info(emulation.GPUS[name].library))
        case [name, "-m", module, *arguments] if name in emulation.GPUS:
            emulation.install(name)
            sys.argv[:] = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case _:
            sys.exit(f"usage: python tests/emulation {'|'.join(emulation.GPUS)} [-m MODULE ...]")
