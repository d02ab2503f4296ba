"""This node among the others: its session, its part in etcd, and what it knows of the rest."""
