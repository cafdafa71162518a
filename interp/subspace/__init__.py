"""In how many directions of the residual stream does the difference between two conditions act?

`learning`: an orthonormal basis by gradient, and the untrained ones. `swaps`: two conditions'
states at one layer, and what a basis does with them. `findings`: the smallest dimension that does
as much as the whole state. `run`: all of it on a finished run.
"""
