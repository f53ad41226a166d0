"""Emulate a GPU in NumPy: run the PTX that Triton generates for a kernel, and find its races.

Triton's interpreter runs a kernel's Python. What the compiler makes of it (loop bounds, layouts, shared memory,
barriers, asynchronous copies, tensor cores) runs only on a GPU, or here. Warps take turns at random, programs start in
random order, and asynchronous copies and matrix products complete as late as they may. Every access is checked against
the bounds and the alignment of its target, and against accesses to the same bytes by other warps since the last barrier
and by other programs of the launch. Instructions that headspan's kernels do not use are refused, as are branches within
a warp, which Triton does not generate.

Not covered: ptxas, speed, fences before the tensor cores, precision below float32's normal numbers, and a warp that
reads the memory of a wrong argument.
"""
