"""Certificates, tokens and who signs them."""
