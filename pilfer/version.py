"""The one place of the version."""

VERSION = "0.1.0"

#: Of the calls between nodes: nodes with different numbers do not join one cluster. Raised only when old and new nodes
#: could not work side by side; versions that differ otherwise are upgraded node by node.
PROTOCOL = 1
