"""The engine as it runs on a GPU, with paged cache and captured decodes, against the reference engine.

Without a GPU the kernels' plain-torch twins run, and captured steps are only laid out as captures need them.
"""
