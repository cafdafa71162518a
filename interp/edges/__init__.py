"""Which node's output, read by which head or MLP, carries a condition? Edges of the network.

`nodes`: who writes to the residual stream, and who reads it. `writing`: what every node writes.
`reading`: the gradient at every reader's own input. `paths`: one edge patched exactly. `run`: all
of it on a finished run.
"""
