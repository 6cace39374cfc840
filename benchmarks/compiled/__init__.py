"""What compilers make of the kernels: registers, spills, shared memory, instructions; the budgets that they keep."""
