"""Tasks in other processes, here and on Dask: one try packed (``shipment.py``), sent, and run there (``remote_try.py``). The
processes are forks of one clean server (``process_main.py``), which workers have too. Which runners there are: ``task_runners.py``,
one folder up.
"""
