"""What a run says of its differences in words, as figures and tables show it.

    of = run.reading                     # NotMeasured where `interp read` was not run
    of.strongest(("lora", "base"), "unrelated")
    of.said(("lora", "base"), "unrelated", layer=3, position="mean")

Torch-free; nothing here draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.names import Pair
from interp.runs.files import READ_TOKENS
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd


class WordLens(NamedTuple):
    """A way to read words out of a difference: what `reading_tokens.parquet` calls it, and the
    measures of its rows (empty: it has none of the kind)."""

    name: str
    score: str
    random: str
    excess: str = ""
    rank: str = ""


LOGIT_LENS = WordLens(
    "logit lens", "word_score", "word_score_random", "word_score_excess", "word_rank"
)
JACOBIAN_LENS = WordLens(
    "Jacobian lens",
    "jacobian_score",
    "jacobian_score_random",
    "jacobian_score_excess",
    "jacobian_rank",
)
PATCHSCOPE = WordLens("patchscope", "patchscope_score", "patchscope_random")

STEERED = "steered"
"""What `reading_tokens.parquet` calls samples that base wrote with a vector added."""
STEERED_WORDS, STEERED_RANDOM = "steered_words", "steered_words_random"


@dataclass(frozen=True)
class Readings:
    """The rows of readings, and their findings."""

    run: Run
    found: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> Readings:
        """The run's readings; `NotMeasured` without any."""
        found = run.manifest.get("reading")
        if not found:
            raise NotMeasured("this run's differences were not read: use `interp read`")
        return cls(run, found)

    @property
    def variables(self) -> LoraVariables:
        """What was found of a LoRA's own variables; `NotMeasured` without."""
        found = self.found.get("variables")
        if not found:
            raise NotMeasured("this run has no LoRA whose directions were followed")
        return LoraVariables(self.run, found)

    @property
    def fitted(self) -> str:
        """On what the Jacobian lens was fitted, in words; empty without one."""
        found = self.found.get("jacobian")
        return f"Fitted on {found['texts']} texts under {found['under']}" if found else ""

    @property
    def words(self) -> list[str]:
        """The task words."""
        return [str(word) for word in self.found["words"]]

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group of texts -> the positions at which it was read."""
        return {str(name): list(labels) for name, labels in self.found["positions"].items()}

    @property
    def pairs(self) -> dict[Pair, Pair | None]:
        """Every pair -> the pair that stands for its null."""
        return {
            (entry["condition"], entry["reference"]): tuple(entry["null"] or ()) or None
            for entry in self.found["pairs"]
        }

    @property
    def own(self) -> list[Pair]:
        """The pairs that are no control's, those against base first."""
        nulls = set(self.pairs.values())
        controls = set(self.run.nulls)
        return [p for p in self.pairs if p not in nulls and not controls & set(p)]

    @property
    def against_base(self) -> list[Pair]:
        """The pairs with base as reference: sides, then controls."""
        return [pair for pair in self.pairs if pair[1] == self.run.base]

    def read_by(self, lens: WordLens) -> bool:
        """Whether words were scored so."""
        return bool((self.run.table["measure"] == lens.score).any())

    def rows(self, measure: str, pair: Pair, group: str, position: str) -> pd.DataFrame:
        """Rows of one measure by layer."""
        return self.run.by_layer(measure, "resid_post", pair, position, group)

    def row(
        self, measure: str, pair: Pair, group: str, position: str, layer: int
    ) -> Mapping[str, Any] | None:
        """One row; None where there is none."""
        found = self.rows(measure, pair, group, position)
        found = found[found["layer"] == layer]
        return None if found.empty else found.iloc[0].to_dict()

    def strongest(
        self, pair: Pair, group: str, lens: WordLens = LOGIT_LENS
    ) -> Mapping[str, Any] | None:
        """The row with the largest score of the task words over layers and positions; None without
        a defined one."""
        import pandas as pd

        parts = [self.rows(lens.score, pair, group, position) for position in self.groups[group]]
        found = pd.concat(parts)
        found = found[found["value"].notna()]
        return None if found.empty else found.loc[found["value"].idxmax()].to_dict()

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """All ranked tokens: `interp.runs.files.TOKEN_COLUMNS`. They are hostile text."""
        import pandas as pd

        return pd.read_parquet(self.run.path / READ_TOKENS)

    def said(
        self,
        pair: Pair,
        group: str,
        layer: int,
        position: str,
        vector: str = "mean",
        lens: WordLens = LOGIT_LENS,
    ) -> pd.DataFrame:
        """The tokens of one vector, most said first, task words among and behind them."""
        t = self.tokens
        keep = (t["lens"] == lens.name) & (t["condition"] == pair[0]) & (t["reference"] == pair[1])
        keep &= (t["queries"] == group) & (t["position"] == position) & (t["layer"] == layer)
        return t[(keep & (t["vector"] == vector)).fillna(False)].sort_values("rank")

    @cached_property
    def steered(self) -> pd.DataFrame:
        """Shares of task words in what base wrote: the table's rows with `strength` (0: base alone)
        and `random` (whether it is a random direction's as long as the mean difference)."""
        rows = self.run.table[self.run.table["measure"].isin([STEERED_WORDS, STEERED_RANDOM])]
        strength = rows["position"].str.split(" x ").str[0].astype(float)
        return rows.assign(strength=strength, random=rows["measure"] == STEERED_RANDOM)

    def written(self, row: Mapping[Any, Any]) -> pd.DataFrame:
        """The samples that one row of `steered` counts, in the order of the texts."""
        t = self.tokens
        keep = t["lens"] == STEERED
        for name in ("condition", "reference", "queries", "position"):
            keep &= t[name] == row[name]
        return t[keep.fillna(False)].sort_values("rank")


AUROC, AUROC_BEST = "direction_auroc", "direction_auroc_best"
CHANNEL_SIDES = ("read", "written")
BLOCK_MODULES, EVERY_MODULE = "block", "every"
"""The sites of means over the modules of a layer, and over all."""


@dataclass(frozen=True)
class LoraVariables:
    """What a run says of one LoRA's singular directions.

    A pair is (whose run, whose directions)."""

    run: Run
    found: Mapping[str, Any]

    @property
    def lora(self) -> str:
        """The condition whose LoRA it is."""
        return str(self.found["lora"])

    @property
    def random(self) -> str | None:
        """The random LoRA whose directions are the null."""
        return self.found["random"]

    @property
    def neutral(self) -> str | None:
        """The neutral prompt."""
        return self.found["neutral"]

    @property
    def users(self) -> list[str]:
        """Prompts: the conditions that leave the weights alone, the neutral one last."""
        return sorted(map(str, self.found["users"]), key=lambda name: name == self.neutral)

    @property
    def text_position(self) -> str:
        """The position of the text's own tokens."""
        known = set(self._rows("channel_read")["position"].dropna())
        return "query" if "query" in known else "mean"

    def _rows(self, measure: str) -> pd.DataFrame:
        return self.run.table[self.run.table["measure"] == measure]

    def _of(self, measure: str, pair: Pair, group: str) -> pd.DataFrame:
        rows = self._rows(measure)
        keep = (rows["condition"] == pair[0]) & (rows["reference"] == pair[1])
        return rows[(keep & (rows["queries"] == group)).fillna(False)]

    def chance(self, side: str) -> float:
        """Rank over dimensions, mean over modules."""
        return float(self._rows(f"channel_{side}_chance")["value"].mean())

    def by_block(
        self, measure: str, pair: Pair, position: str, group: str = "matched"
    ) -> pd.DataFrame:
        """Means over a layer's modules, in layer order."""
        rows = self._of(measure, pair, group)
        rows = rows[(rows["site"] == BLOCK_MODULES) & (rows["position"] == position)]
        return rows[rows["value"].notna()].sort_values("layer")

    def overall(
        self, measure: str, pair: Pair, position: str, group: str = "matched"
    ) -> Mapping[str, Any] | None:
        """The mean over all modules; None where it is not defined."""
        rows = self._of(measure, pair, group)
        rows = rows[(rows["site"] == EVERY_MODULE) & (rows["position"] == position)]
        return None if rows.empty else rows.iloc[0].to_dict()

    def auroc(self, owner: str, side: str, condition: str | None = None) -> pd.DataFrame:
        """Every direction's AUROC in a run (None: the LoRA's own)."""
        rows = self._of(AUROC, (condition or self.lora, owner), "matched")
        rows = rows[rows["position"].str.endswith(f" {side}")]
        return rows[rows["layer"].notna()]

    def best(self, owner: str, side: str, condition: str | None = None) -> Mapping[str, Any] | None:
        """The direction that was best on other texts, and its AUROC."""
        rows = self._of(AUROC_BEST, (condition or self.lora, owner), "matched")
        rows = rows[rows["position"].str.endswith(f" {side}")]
        return None if rows.empty else rows.iloc[0].to_dict()

    def listed(self, kind: str, module: str, direction: int, group: str | None) -> pd.DataFrame:
        """The tokens that drive a direction (`drivers`, of a group), or that it writes
        (`written`)."""
        t = self.run.reading.tokens
        side = "read" if kind == "drivers" else "written"
        keep = (t["lens"] == kind) & (t["site"] == module)
        keep &= t["position"] == f"direction {direction} {side}"
        if group is not None:
            keep &= t["queries"] == group
        return t[keep.fillna(False)].sort_values("rank")
