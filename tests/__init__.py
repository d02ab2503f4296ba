"""Tests, in tiers: see `make help` for how to run each."""
