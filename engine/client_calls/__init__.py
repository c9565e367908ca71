"""What the client of ``get_client()`` (``client.py``, one folder up) reads and writes, thing by thing, with the filters, orders and
records it does so in: the words are Prefect's.
"""
