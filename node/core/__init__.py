"""Policy: values and pure decisions. No I/O, no clock, no asyncio, no randomness of its own."""
