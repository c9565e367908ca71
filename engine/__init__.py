"""Running work: flows, tasks, states, futures, results, resume, workers, deployments."""
