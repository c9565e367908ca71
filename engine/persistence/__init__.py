"""What outlives its process: results under keys, with what is known of them (``result_store.py``, ``shelf.py``), the cache of tasks
(``caching.py``), and blocks as they are kept (``block_*.py``).
"""
