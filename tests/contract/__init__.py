"""Tests that run on a fake and on the real thing alike."""
