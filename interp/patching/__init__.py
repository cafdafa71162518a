"""Is one condition's internal state as good as the other's? Interchange, heads, ablation.

`patching`: many edits of one run. `interchange`: one condition's values in another's run, and what
came of it as `effects`. `ranking`, `greedy`, `function_vectors`: which heads carry a behaviour.
`attribution`: the same to first order, by gradients. `ablation`: a LoRA without some of its parts.
"""
