"""Kernels, one op a file: the Triton kernel, its plain-torch twin, and the one function callers use.

That function runs the kernel on CUDA tensors (or in Triton's interpreter, when TRITON_INTERPRET=1 was set at import)
and the twin on everything else, so that importing and calling an op needs neither a GPU nor Triton. Where an op has a
kernel for CPUs, too, that is the C++ file of the same name, used once ``native`` has built it.

Variables in Triton kernels: ``i_`` index, ``o_`` offset, ``m_`` mask, ``p_`` pointer, ``b_`` block of values;
CAPITALS are known when the kernel is compiled. No kernel is tuned at run time: a configuration fixes the order of its
reductions, so it is chosen from a table by shape and dtype, and results repeat.
"""
