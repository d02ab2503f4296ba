"""`python -m node`: the same as the `node` command."""

from __future__ import annotations

from node.cli import main

main()
