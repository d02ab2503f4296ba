"""Isolation: the spawner process and its sandboxes. Imports nothing else of the project."""
