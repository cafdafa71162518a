"""Tables and sentences on a LoRA's own variables.

channel_table(of).rows[0]            # how much of what the prompt changes lies in the channel
variable_words(of)                   # does the prompt use it?
"""

from __future__ import annotations

from typing import Any

from interp.report.tables import Cell, Table, estimate, listed
from interp.runs.modules import labelled
from interp.runs.readings import CHANNEL_SIDES, LoraVariables
from interp.runs.view import NotMeasured, Run
from interp.showing import number, visible

_DONE = {"read": "reads", "written": "writes"}
_DASH = Cell("–", kind="number")


def variables_section(run: Run) -> dict[str, Any] | None:
    """What the report's section shows; None without one."""
    try:
        of = run.reading.variables
    except NotMeasured:
        return None
    return {
        "findings": [visible(line) for line in variable_words(of)],
        "channel": channel_table(of),
        "detection": detection_table(of),
        "drivers": driver_table(of),
    }


def channel_table(of: LoraVariables) -> Table:
    """Shares of what prompts change along the LoRA's directions, beside both nulls."""
    rows = []
    for side in CHANNEL_SIDES:
        for user in of.users:
            pair, position = (user, of.lora), of.text_position
            measures = [f"channel_{side}", f"channel_{side}_excess", f"channel_{side}_over_random"]
            found = [of.overall(measure, pair, position) for measure in measures]
            if found[0] is not None:
                chance = Cell(number(of.chance(side)), kind="number")
                cells = [estimate(row) if row else _DASH for row in found]
                rows.append([Cell(visible(user)), Cell(f"what it {_DONE[side]}"), cells[0], chance,
                             *cells[1:]])  # fmt: skip
    columns = ["condition", "directions", "share of the change", "chance (rank / width)"]
    columns += ["over the neutral prompt's", "over a random LoRA's directions"]
    words = f"What prompts change along {visible(of.lora)}'s directions, mean over modules"
    return Table(f"{words}, position {of.text_position}.", columns, rows)


def detection_table(of: LoraVariables) -> Table:
    """The best direction's AUROC on texts that did not choose it, in the LoRA's run and base's."""
    rows = []
    for side in CHANNEL_SIDES:
        for condition in (of.lora, of.run.base):
            for owner in filter(None, (of.lora, of.random)):
                best = of.best(owner, side, condition)
                if best is not None:
                    rows.append(
                        [
                            Cell(visible(str(condition))),
                            Cell(visible(owner)),
                            Cell(f"what they {_DONE[side].removesuffix('s')}"),
                            Cell(visible(f"{best['site']}, {best['position']}"), kind="long"),
                            estimate(best),
                        ]
                    )
    columns = ["run", "directions of", "side", "chosen direction", "AUROC"]
    words = "Does one direction tell the run's queries from unrelated text? Chosen on one half of "
    return Table(f"{words}the texts, scored on the other.", columns, rows)


def driver_table(of: LoraVariables) -> Table:
    """The strongest directions: what drives them, and what they write."""
    rows = []
    for entry in of.found["strongest"]:
        place = (str(entry["module"]), int(entry["direction"]))
        name = f"{_short(of, place[0])}, direction {place[1]}"
        groups = [of.listed("drivers", *place, group) for group in ("matched", "unrelated")]
        written = listed(of.listed("written", *place, None))
        cells = [Cell(listed(frame), kind="long") for frame in groups]
        size = Cell(number(float(entry["size"])), kind="number")
        rows.append([Cell(visible(name)), size, *cells, Cell(written or "–", kind="long")])
    columns = ["direction", "size of its write", "driven by (queries)", "driven by (unrelated)"]
    columns += ["writes"]
    words = f"The directions of {visible(of.lora)} that write most (root mean square of s|Vx|)"
    return Table(f"{words}; what lands in the residual stream is read by the lens.", columns, rows)


def _short(of: LoraVariables, module: str) -> str:
    """A module's name as people use it."""
    known = of.auroc(of.lora, "read").drop_duplicates("site")
    named = labelled(known).set_index("site")["name"]
    return str(named.get(module, module))


def variable_words(of: LoraVariables) -> list[str]:
    """What the numbers say, a sentence per prompt and side, then one on detection."""
    prompts = [user for user in of.users if user != of.neutral]
    lines = [_uses(of, user, side) for user in prompts for side in CHANNEL_SIDES]
    return [line for line in [*lines, *(_detects(of, side) for side in CHANNEL_SIDES)] if line]


def _uses(of: LoraVariables, user: str, side: str) -> str:
    pair, position = (user, of.lora), of.text_position
    own = of.overall(f"channel_{side}", pair, position)
    if own is None:
        return ""
    share = estimate(own)
    words = (
        f"Of what {user} changes, {share.text} {share.extra} lies along the directions that "
        f"{of.lora} {_DONE[side]} (chance {number(of.chance(side))})"
    )
    nulls = {"excess": "the neutral prompt's", "over_random": "that along a random LoRA's"}
    said, over = [], []
    for ending, name in nulls.items():
        more = of.overall(f"channel_{side}_{ending}", pair, position)
        if more is not None and more["ci_low"] == more["ci_low"]:
            cell = estimate(more)
            over.append(more["ci_low"] > 0)
            said.append(f"{cell.text} {cell.extra} over {name}")
    if not said:
        return f"{words}; there is no null to read it against."
    verdict = "uses" if all(over) else "does not use"
    nulls_said = " and ".join(said)
    return f"{words}, {nulls_said}: {user} {verdict} this channel more than its nulls."


def _detects(of: LoraVariables, side: str) -> str:
    own = of.best(of.lora, side)
    if own is None:
        return ""
    cell = estimate(own)
    null = of.best(of.random, side) if of.random else None
    beside = ""
    if null is not None:
        other = estimate(null)
        beside = f"; the best of a random LoRA's: {other.text} {other.extra}"
    place = f"{_short(of, str(own['site']))}, {own['position']}"
    return (
        f"The best direction of what {of.lora} {_DONE[side]} ({place}) tells queries from "
        "unrelated text "
        f"by an AUROC of {cell.text} {cell.extra} on texts that did not choose it{beside}."
    )
