"""What users could pick instead, on the same work, on the same machine, in one run: `python -m bench.peers`.

Each system is a module here: how its server is configured and started, how it is spoken to, and what its
acknowledgement is worth. :mod:`bench.peers.exchange` is the load that all of them have in common.
"""
