"""TransformerLens's Jacobian lens of a subject, fitted under the weights of one of its settings.

    found = fit_jacobians(subject, subject.settings["lora"], ["A cart stood by the road."], [0, 2])
    found.matrices[2]                # [d_model, d_model]: the last block's output by block 2's

A block's J is the mean over texts and tokens of how the last block's output at this token and all
later ones, summed, answers to a change of the block's output there (Gurnee et al. 2026,
"Verbalizable Representations Form a Global Workspace in Language Models"). Of the last block it is
the identity.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from transformer_lens.tools.analysis import JacobianLens

from interp.conditions import Setting
from interp.errors import SubjectError
from interp.subject.subject import Subject

SKIPPED = 4
"""First tokens of a text that do not count: attention sinks have states unlike all others."""

_TOGETHER = 64
"""Dimensions of the last block's output that one backward pass differentiates."""


class Jacobians(NamedTuple):
    """The J of layers below the last, float32 on the CPU, and of how many texts they are the
    mean."""

    matrices: Mapping[int, Float[Tensor, "d_model d_model"]]
    n: int


def fit_jacobians(
    subject: Subject,
    setting: Setting,
    texts: Sequence[str],
    layers: Sequence[int],
    progress: Callable[[], None] = lambda: None,
) -> Jacobians:
    """The mean J of these layers over texts under the weights of a setting; nothing else of it
    acts, but for a BOS before the text where its prefix begins with one.

    `d_model / 64` backward passes a text. Texts too short for a token that counts are left out.
    A `SubjectError` where none is left, and where TransformerLens refuses the architecture.
    """
    below = [layer for layer in layers if layer < subject.n_layers - 1]
    if not below:
        return Jacobians({}, 0)
    bridge, least = subject.bridge, SKIPPED + 2
    begins = setting.prefix[:1] == (subject.tokenizer.bos_token_id,)
    with _bos(bridge, begins):
        long = [text for text in texts if bridge.to_tokens(text).shape[1] >= least]
    if not long:
        raise SubjectError(f"the Jacobian lens needs a text of {least} tokens or more")
    lens: JacobianLens | None = None
    with subject.weights.of(setting), _bos(bridge, begins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in half precision it advises float32
        for text in long:
            try:
                own = JacobianLens.fit(
                    bridge,
                    [text],
                    corpus="texts of a run",
                    source_layers=below,
                    dim_batch=min(_TOGETHER, subject.d_model),
                    skip_first_positions=SKIPPED,
                    show_progress=False,
                )
            except (TypeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise SubjectError(
                    f"the Jacobian lens does not apply to {subject.name}: {reason}"
                ) from error
            lens = own if lens is None else JacobianLens.merge([lens, own])
            progress()
    assert lens is not None
    return Jacobians(lens.jacobians, lens.n_prompts)


@contextlib.contextmanager
def _bos(bridge: Any, wanted: bool) -> Iterator[None]:
    """TransformerLens puts a BOS before texts while inside, or none; of itself it puts one where
    the model's tokenizer does not."""
    before = bridge.cfg.default_prepend_bos
    bridge.cfg.default_prepend_bos = wanted
    try:
        yield
    finally:
        bridge.cfg.default_prepend_bos = before
