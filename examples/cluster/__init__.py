"""Several nodes on one machine, each with a network of its own: `make cluster`, and the ground of the cluster tests."""
