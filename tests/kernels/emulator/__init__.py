"""A GPU's processor in NumPy: runs the PTX that Triton makes of a kernel, and finds its races.

Triton's interpreter runs a kernel's Python; what the compiler makes of it (loop bounds, layouts, shared memory,
barriers, copies under way, tensor cores) is first met on a GPU, or here. Warps take turns at random, programs come in
random order, copies and matrix products in flight arrive as late as they may; every access is held against the bounds
and the alignment of what it addresses, and against what other warps since the last barrier, and other programs of the
launch, did to the same bytes. Instructions that headspan's kernels do not use, and branches within a warp, which Triton
makes none of, are refused. Not seen: ptxas, speed, fences before the tensor cores, what is lost below float32's
normal numbers, and a warp that reads another argument's memory in place of its own.
"""
