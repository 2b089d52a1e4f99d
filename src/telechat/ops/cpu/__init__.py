"""CPU kernels in C: packed products, norm, rotary embedding, SwiGLU, paged attention, a whole decoder.

Every operation has a module with the operation, its reference in plain torch and what stands in its way
(`obstacle`). `library` compiles and loads the C code; `context` holds threads and the instruction set level.
Nothing here chooses when the kernels are used.
"""
