"""What an interchange did, by query and cell. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from numpy import ndarray

from interp.causal.cells import Cell


@dataclass(frozen=True)
class Effects:
    """What one source's values did in one target's runs.

    `to_target`: `KL(p_target ‖ p_patched)`, the damage; `to_source`: `KL(p_source ‖ p_patched)`;
    `log_odds`: of the answer in the patched run. `apart`: `KL(p_source ‖ p_target)`; `source_odds`,
    `target_odds`: the answer's log-odds in their own runs. All in nats, at the query's last token;
    NaN where a query has no token at the cell's position. `control`: "" or the name of the control.
    """

    source: str
    target: str
    control: str
    cells: tuple[Cell, ...]
    to_target: Float[ndarray, "query cell"]
    to_source: Float[ndarray, "query cell"]
    log_odds: Float[ndarray, "query cell"]
    apart: Float[ndarray, " query"]
    source_odds: Float[ndarray, " query"]
    target_odds: Float[ndarray, " query"]
