"""The readable engine: one request at a time, every formula spelled out in plain PyTorch.

Read it in this order:

1. ``engine.py``    what happens to a request, from ``add`` to its last token
2. ``model.py``     the decoder: two residual equations, repeated
3. ``attention.py``, ``rope.py``, ``kv_cache.py``   how a token looks at the ones before it
4. ``mlp.py``, ``norm.py``      what happens to each token by itself
5. ``sampling.py``, ``philox.py``   how logits become a token
"""

from reference.engine import ReferenceEngine

__all__ = ["ReferenceEngine"]
