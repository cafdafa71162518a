"""What is compared on a chunk of queries, what was seen of it, and how its tokens are summed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int
from torch import Tensor

from interp.batch import Tokens
from interp.design import ConditionPair
from interp.measures.attention import AttentionRows, Changes
from interp.measures.output import Between
from interp.measures.routing import Routing
from interp.measures.scores import ScoreSplit
from interp.names import Site
from interp.positions import POOLED, answer_labels

STATE_SITES = ("resid_post", "attn_out", "mixer_out", "mlp_out", "z")
"""Sites whose states are compared, in the layers that have them."""

KEYS_VALUES = ("k", "v")
"""Those that are compared too where asked for."""


OutputDistances = Mapping[ConditionPair, Between]
"""How far the outputs of pairs are."""


@dataclass(frozen=True)
class Plan:
    """What is compared and how finely; the same plan on the same queries gives the same numbers.

    `pairs` have rows, `certified` ones a certificate; `controls`: the pair that each tested pair is
    tested against; `members`: the conditions whose distances are compared within and between
    families; `kept`: the conditions whose states are kept at the queries numbered `sample`;
    `speaker`: the condition whose top token is the target of a query without an answer; `against`:
    the token over which its lead is split, or None; `bos`: whether every sequence begins with one;
    `longest_answer`: tokens of the longest answer; `sites`: whose states are compared; `withheld`:
    what this model does not allow to measure (`interp.capabilities`), `unasked`: what nobody asked
    for; `layers`: site -> the layers that have it;
    `noise`: the size of rounding in the model's number format (`interp.noise`).
    """

    base: str
    pairs: tuple[ConditionPair, ...]
    certified: tuple[ConditionPair, ...]
    controls: Mapping[ConditionPair, ConditionPair]
    members: tuple[str, ...]
    kept: tuple[str, ...]
    sample: frozenset[int]
    speaker: str
    against: int | None
    bos: bool
    labels: tuple[str, ...]
    longest_answer: int
    replicates: int
    permutations: int
    seed: int
    batch_size: int
    sites: tuple[str, ...] = STATE_SITES
    noise: float = 0.0
    withheld: Mapping[str, str] = field(default_factory=dict)
    unasked: frozenset[str] = frozenset()
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def unread(self) -> frozenset[str]:
        """Groups of measures that are left out."""
        return self.unasked.union(self.withheld)


@dataclass(frozen=True)
class Observed:
    """One condition's values on one chunk, every list by the layers that have the site.

    `states`: site name -> `[batch, (head,) query_pos, d]`. `rows`, `scores`: attention. `routing`:
    of mixtures of experts. Of the runs
    pinned to base's inputs: `pinned`, content patterns of the condition's own weights and prefix,
    and `changes`, what its heads' changes are made of (both empty for base). `base_weights`:
    content patterns of base's weights at the condition's inputs, where it has its own. `splits`:
    what the heads' scores change by. `broken`: queries whose values are no numbers, and from which
    site on (`interp.finite`).
    """

    logits: Tensor
    states: dict[str, list[Tensor]]
    rows: list[AttentionRows]
    scores: list[Tensor]
    routing: list[Routing] = field(default_factory=list)
    pinned: list[Tensor] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)
    base_weights: list[Tensor] = field(default_factory=list)
    splits: list[ScoreSplit] = field(default_factory=list)
    broken: dict[int, Site | None] = field(default_factory=dict)

    @property
    def content(self) -> list[Tensor]:
        """The content patterns."""
        return [rows.content for rows in self.rows]


@dataclass(frozen=True)
class Scale:
    """How tokens are summed: `positions` `[query, query_pos, label]` by `labels`; `answers`: the
    tokens that predict the answers; `targets`: what they should say (-1: not known)."""

    positions: np.ndarray
    labels: tuple[str, ...]
    answers: Tokens
    targets: Int[Tensor, " token"]

    @property
    def tested(self) -> int:
        """How many labels are tested against a control: those that are no index, the first."""
        return sum(label in POOLED for label in self.labels)

    def at_answer(self) -> Scale:
        """For values `[query, ..., row]` of the tokens that predict an answer."""
        labels = answer_labels(self.labels)
        columns = (
            self.answers.batch.ends.cpu().numpy()[:, None] - 1 + np.arange(self.answers.n_rows)
        )
        columns = columns.clip(max=self.positions.shape[1] - 1)
        chosen = [self.labels.index(label) for label in labels]
        positions = np.take_along_axis(self.positions, columns[..., None], axis=1)[..., chosen]
        return replace(self, positions=positions, labels=tuple(labels))

    def by_query(self) -> Scale:
        """For one value per query: of its whole answer."""
        return replace(self, positions=np.ones((len(self.positions), 1, 1)), labels=("answer",))
