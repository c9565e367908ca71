"""Tasks in other threads, in other processes and on Dask: one try packed (``shipment.py``), sent, and run there
(``remote_try.py``). The processes are forks of one clean server (``process_main.py``), which workers have too.
"""
