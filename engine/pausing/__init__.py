"""Runs that wait: sleeps that hold no worker (``sleeping.py``, ``durable.py``), pauses, and the inputs that end them."""
