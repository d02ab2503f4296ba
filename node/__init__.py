"""The node: one process on every machine, without a head."""
