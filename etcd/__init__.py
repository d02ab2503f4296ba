"""etcd: the server as a child process, its client, and the tasks kept in it (keys, records, transitions)."""
