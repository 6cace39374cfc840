"""What a compiler made of one kernel, whichever kind it is: the numbers, what is wrong with them, and a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

R = TypeVar("R", bound="Report")

# Bytes of shared memory that one block may have, by compute capability.
SHARED_LIMITS = {70: 98304, 80: 166912, 89: 101376, 90: 232448}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a compiler made of one kernel for one architecture."""

    kind: ClassVar[str]  # of the kernels, as `python -m benchmarks.compiled` takes it
    tensor_instructions: ClassVar[str]  # what products in 16 bits must be compiled to
    # The numbers that a budget bounds: registers, shared memory and such from above, others from below.
    bounded: ClassVar[tuple[str, ...]]
    expected: ClassVar[tuple[str, ...]] = ()

    kernel: str
    capability: int
    compiler: str
    registers: int = 0  # of a thread
    shared: int = 0  # bytes of a block
    stack: int = 0  # bytes of a thread, as are spills
    spill_stores: int = 0
    spill_loads: int = 0
    tensor_cores: dict[str, int] = field(default_factory=dict)  # instructions by name
    error: str = ""  # what is wrong with it, said of it; the numbers above may be unknown then

    @classmethod
    def from_json(cls: type[R], values: dict[str, Any]) -> R:
        """The inverse of `dataclasses.asdict` and JSON, which makes text of dictionary keys that are numbers."""

        def restored(x: Any) -> Any:
            return {int(key) if key.isdigit() else key: value for key, value in x.items()} if isinstance(x, dict) else x

        return cls(**{name: restored(x) for name, x in values.items()})

    @property
    def arch(self) -> str:
        return f"sm_{self.capability}"

    @property
    def entry(self) -> str:
        """The name of the budget's entry that it has to keep; reports may share one."""
        return self.kernel

    @property
    def shared_limit(self) -> int:
        """Bytes of shared memory that a block may have on every GPU that runs the code."""
        return SHARED_LIMITS[self.capability]

    @property
    def tensor_core_instructions(self) -> int:
        return sum(self.tensor_cores.values())

    @property
    def needs_tensor_cores(self) -> bool:
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.kernel} on {self.arch}"

    def faults(self) -> list[str]:
        """Sentences about what no kernel may do, whatever its budget: spill, for one."""
        if self.error:
            return [f"{self} {self.error}"]
        sentences = []
        if self.stack or self.spill_stores or self.spill_loads:
            sentences.append(
                f"{self} spills registers: {self.spill_stores} bytes stored, {self.spill_loads} loaded, a stack of "
                f"{self.stack}; allowed: 0"
            )
        if self.shared > self.shared_limit:
            sentences.append(f"{self} takes {self.shared} bytes of shared memory; a block may have {self.shared_limit}")
        if self.needs_tensor_cores and not self.tensor_cores:
            sentences.append(f"{self} multiplies matrices without tensor cores; expected: {self.tensor_instructions}")
        return sentences

    def row(self) -> dict[str, str]:
        """Its line of the table, by column."""
        cores = ", ".join(f"{count} {name}" for name, count in self.tensor_cores.items()) or "-"
        return {
            "kernel": self.entry,
            "arch": self.arch,
            "registers": str(self.registers),
            "shared": str(self.shared),
            "stack": str(self.stack),
            "spills": str(max(self.spill_stores, self.spill_loads)),
            "tensor cores": "error" if self.error else cores,
        }


def table(reports: Iterable[Report]) -> str:
    """The reports as a table in text, a line each."""
    found = [report.row() for report in reports]
    rows = [list(found[0]), *(list(row.values()) for row in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
