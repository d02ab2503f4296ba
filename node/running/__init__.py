"""From a queued task to its end on this node: claiming, running, logs."""
