"""Run by ``test_equal_to_twin.py`` in processes of their own, where Triton was imported with TRITON_INTERPRET=1."""
