"""What a recipe will need, before it is trained. Its public parts:

plan           text: the recipe, its steps, rates and memory, which --dry-run prints
memory         expect, expect_knn: the bytes of one process, measured on tensors without data
live           LiveStorages: bytes of the tensors that are alive inside a block
"""
