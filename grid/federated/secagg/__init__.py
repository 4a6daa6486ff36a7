"""Secure aggregation: the gateway learns the sum of the nodes' vectors, and nothing else of any of them.

After Bonawitz et al., CCS 2017 (Figure 4, with signatures and the consistency check), on the graph of Bell et al., CCS 2020.
`party.Party` is a node in one attempt of one round, `server.Server` the gateway's arithmetic. Both are pure: no I/O, no clock.
"""
