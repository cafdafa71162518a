"""Does the instrument tell the truth, on this machine and on this model? Torch-free here.

`outcome`: a check's record, and the table of them. `published`: measures against independent
formulas. `tiny`: random models of nine architectures. `planted`: adapters whose first site is
known, and the search for it. `identities`: what must hold of any model. `toy`: the separating toy.
`running`: all of them.
"""
