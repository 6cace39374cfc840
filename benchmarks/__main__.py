"""``python -m benchmarks run --suite quick [--provider cpu ...] [--dtype fp32 ...] [--threads 4]``"""

from __future__ import annotations

import argparse

import torch

from . import results
from .cases import DTYPES, LAYOUTS, SHAPES, SUITES, Case
from .measure import Row, busy_cores, keep_heap, measure
from .providers import PROVIDERS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="time a suite, print the table and append it to benchmarks/results/<device>/")
    run.add_argument("--suite", choices=SUITES, default="quick")
    run.add_argument("--provider", choices=PROVIDERS, nargs="+", default=list(PROVIDERS), help="eager is always there")
    run.add_argument("--dtype", choices=DTYPES, nargs="+", default=["fp32", "bf16"])
    run.add_argument("--layout", choices=LAYOUTS, nargs="+", default=list(LAYOUTS))
    run.add_argument("--shape", choices=SHAPES, nargs="+", help="only these shapes of the suite")
    run.add_argument("--device", default="cpu")
    run.add_argument("--threads", type=int, help="threads of PyTorch and of the cpu backend")
    run.add_argument("--seconds", type=float, default=2.0, help="time spent on each case and mode")
    run.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    busy = busy_cores()
    if busy is not None and busy > 0.5:
        print(f"Other processes keep {busy:.1f} cores of this machine busy: wait for them, or the times mean little.")
    heap = keep_heap()
    providers = list(dict.fromkeys(["eager", *options.provider]))
    rows: list[Row] = []
    for dtype in options.dtype:
        for name in SUITES[options.suite]:
            for layout in options.layout:
                if options.shape and name not in options.shape:
                    continue
                rows += (new := measure(Case(SHAPES[name], layout, dtype, options.device), providers, options.seconds))
                results.print_case(new)
    results.print_means(rows)
    if not options.no_record:
        print(f"\nAppended to {results.append(rows, options.suite, options.device, busy, heap)}")


if __name__ == "__main__":
    main()
