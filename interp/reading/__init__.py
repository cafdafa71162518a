"""What a difference between conditions says: read out in words, and as a LoRA's own variables.

`states`: mean states by segment. `lens`: what adding a vector does to the lens's logits. `scores`:
do they name given words, beyond chance? `words`: which words. `differences`: rows of all of it.
`run`: `interp read`.
"""
