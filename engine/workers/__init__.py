"""Taking runs and executing them: the worker of a pool, its warm processes, and the runs in its hands."""
