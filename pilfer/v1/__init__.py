"""Generated stubs of the API (protos/pilfer/v1); `make protos` makes them anew."""
