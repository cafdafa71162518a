"""What conditions do to the weights, and what a prompt would have to do to them. Torch-free here.

`updates`: the exact change of every matrix under a condition. `slices`: the same by part and head.
`spectra`: singular values, norms, intruder dimensions, overlaps. `measured`: a run's rows of these.
`implicit`: what a prompt would be as an update of every block's MLP. `stacked`: are many such
updates one? `prompted`: a run's rows of these. `static`: one adapter out of many.
"""
