"""A whole cluster in one process, on virtual time, from one seed; see README.md beside this file."""
