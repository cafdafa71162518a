"""What a run's conditions do to every matrix: rows of its table, and how alike two of them are.

    rows, notes = measure_updates(subject, ["lora_0", "lora_1"], settings)
    alike(as_table(rows))

One module at a time: memory is that of its updates, not of the model's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from interp.measures import wide
from interp.patching.ablation import layer_of
from interp.progress import Progress
from interp.registry import MEASURES
from interp.subject import Subject
from interp.weights import spectra
from interp.weights.settings import Weighing
from interp.weights.slices import Piece, heads_of_module, pieces
from interp.weights.updates import Matrix, Update, left_out, update_of, vectors, weight_matrices

if TYPE_CHECKING:
    import pandas as pd

TableRow = dict[str, Any]
"""A row of the run's table of weights, by column."""
_SIDES = ("left", "right")
"""Output space, input space."""


def measure_updates(
    subject: Subject, conditions: Sequence[str], settings: Weighing, progress: Progress
) -> tuple[list[TableRow], list[str]]:
    """Rows of every matrix, its parts and heads, biases and norms; and notes on what was left out.

    `singular_value`, `stable_rank`, `relative_norm` (also of biases and norms, by their names), and
    of whole matrices and parts `intruder_dimensions` and between every two conditions
    `subspace_overlap_left` and `_right`, each with its `_chance`.
    """
    rows: list[TableRow] = []
    large: set[str] = set()
    known = weight_matrices(subject)
    for module, matrix in known.items():
        found = {c: update_of(subject, subject.settings[c], matrix) for c in conditions}
        updates = {c: update for c, update in found.items() if update is not None}
        if updates and not _whole(matrix.weight, settings):
            large.add(module)
        shape = (matrix.weight.shape[0], matrix.weight.shape[1])
        heads = heads_of_module(subject.hf_model, module)
        for piece in pieces(heads, module, shape, settings.heads) if updates else ():
            rows += _of_piece(matrix, piece, updates, settings)
        progress("weights", 1, len(known))
    for condition in conditions:
        for name, (added, base) in vectors(subject, subject.settings[condition]).items():
            value = spectra.relative_norm(float(added.norm()), base)
            rows.append(_row("relative_norm", condition, value, site=name, layer=layer_of(name)))
    return rows, _notes(subject, conditions, settings, large)


def _whole(matrix: Any, settings: Weighing) -> bool:
    """Whether a matrix is small enough for all of its singular vectors."""
    return bool(matrix.numel() <= settings.largest)


def _row(measure: str, condition: str, value: float, **place: Any) -> TableRow:
    names = {"measure": measure, "condition": condition, "value": value}
    return {**names, "units": MEASURES[measure].units, **place}


def _of_piece(
    matrix: Matrix, piece: Piece, updates: Mapping[str, Update], settings: Weighing
) -> Iterator[TableRow]:
    """All rows of one block of a matrix."""
    base = piece.of(matrix.weight)
    site = f"{matrix.module}:{piece.part}" if piece.part else matrix.module
    place = {"site": site, "layer": layer_of(matrix.module), "head": piece.head}
    parts = {c: update.part(piece.rows, piece.columns) for c, update in updates.items()}
    for condition, part in parts.items():
        value = spectra.relative_norm(part.norm, base)
        yield _row("relative_norm", condition, value, **place)
    taken = {c: p for c, p in parts.items() if p.right is not None or _whole(base, settings)}
    for condition, part in taken.items():
        s = part.directions.s
        yield _row("stable_rank", condition, spectra.stable_rank(s), **place)
        for number, value in enumerate(s[: settings.singular_values].tolist()):
            yield _row("singular_value", condition, value, position=str(number), **place)
    if piece.head is None:
        for (a, first), (b, second) in itertools.combinations(taken.items(), 2):
            for row in _overlaps(first, second, settings.overlap):
                yield {**row, "condition": a, "reference": b, **place}
        if settings.intruders and _whole(base, settings):
            for condition, count in _intruders(base, taken, settings).items():
                yield _row("intruder_dimensions", condition, float(count), **place)


def _overlaps(a: Update, b: Update, most: int) -> Iterator[TableRow]:
    """How far the strongest directions of two updates span the same space, on both sides."""
    rank = min(len(a.directions.s), len(b.directions.s), most)
    for side, bases in zip(
        _SIDES,
        ((a.directions.u, b.directions.u), (a.directions.v.T, b.directions.v.T)),
        strict=True,
    ):
        name, d = f"subspace_overlap_{side}", len(bases[0])
        value = spectra.subspace_overlap(*(basis[:, :rank] for basis in bases))
        yield _row(name, "", value)
        if rank:
            low, high = spectra.chance_band(d, rank)
            yield _row(f"{name}_chance", "", rank / d) | {"ci_low": low, "ci_high": high}


def _intruders(base: Any, updates: Mapping[str, Update], settings: Weighing) -> dict[str, int]:
    """Condition -> intruder dimensions; base's own vectors are found once."""
    before = wide(base)
    known = spectra.left_vectors(before)
    at = (settings.top, settings.epsilon)
    return {
        condition: spectra.intruder_dimensions(known, before + update.matrix, *at)
        for condition, update in updates.items()
    }


def _notes(
    subject: Subject, conditions: Sequence[str], settings: Weighing, large: set[str]
) -> list[str]:
    notes = []
    if large:
        notes.append(
            f"{len(large)} matrices ({min(large)}, ...) have more than {settings.largest:g} "
            "entries: no intruder dimensions there, and of changes without factors only the norm "
            "(--largest)"
        )
    for condition in conditions:
        skipped = left_out(subject, subject.settings[condition])
        for reason in dict.fromkeys(skipped.values()):
            modules = [module for module, why in skipped.items() if why == reason]
            notes.append(
                f"{condition}: what it does to {len(modules)} modules ({modules[0]}, ...) is not "
                f"weighed: {reason}"
            )
    return notes


def alike(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every two conditions: overlaps averaged over their common modules, the chance level, and in
    what share of the modules they lie above the chance band."""
    whole = table[~table["site"].str.contains(":") & table["head"].isna()]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for side in _SIDES:
        keys = ["condition", "reference", "site"]
        own, chance = (
            whole[whole["measure"] == f"subspace_overlap_{side}{end}"].set_index(keys)
            for end in ("", "_chance")
        )
        both = own[["value"]].join(chance[["value", "ci_high"]], rsuffix="_chance").dropna()
        both["above"] = both["value"] > both["ci_high"]
        for pair, part in both.groupby(["condition", "reference"], sort=False):
            entry = found.setdefault(pair, {"condition": pair[0], "reference": pair[1]})
            means = part[["value", "value_chance", "above"]].mean()
            entry |= {side: float(means["value"]), f"{side}_chance": float(means["value_chance"])}
            entry |= {f"{side}_above": float(means["above"]), "n": len(part)}
    return list(found.values())
