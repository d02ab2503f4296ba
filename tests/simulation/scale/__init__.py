"""Whole clusters of up to a thousand nodes, without faults: how much each task costs, and where the limits are.

The nodes run their real code (claimer, queue view, runner, own keys, sweeper, lease keeper, store, batcher) on virtual
time. What they talk to is a model of etcd with its own speed, so that queueing at it counts. What is not modelled is
the nodes' own CPU: a node thinks in no time, and what that leaves out is measured apart (`decode.py`).
"""
