"""The gRPC services: what callers may ask of a node, and who may ask it."""
