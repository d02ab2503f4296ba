"""Chaos on real processes; see README.md here."""
