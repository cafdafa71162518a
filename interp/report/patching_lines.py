"""What `interp patch` found, for a terminal: a table by layer, then a sentence for every finding.

    rich.print(patch_table(load_run("RUN")))

It is as wide as the terminal, and plain text where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

from interp.errors import RunError
from interp.report import lora_parts, patching
from interp.report.tables import Cell, Table, estimate
from interp.report.terminal import verdict_style
from interp.runs.largest import UNTESTED
from interp.runs.patched import Patched
from interp.runs.view import Run
from interp.showing import FirstThatFits, Paragraph, number, paragraphs

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType
    from rich.table import Table as Grid

MOST_LAYERS = 16


def patch_table(run: Run) -> RenderableType:
    """Certificate, damage and recovery by layer, verdict, and a line for every finding.

    RunError where the run has no interchange.
    """
    from rich.console import Group
    from rich.text import Text

    if not run.manifest.get("interchange"):
        raise RunError(f"{run.path} has no interchange; make one with `interp patch {run.path}`")
    of = run.interchange
    signed = run.verdict(of.pair)
    below = [of.found["verdict"], *_lines(of), *of.found.get("notes", [])]
    return Group(
        Paragraph(signed.text, verdict_style(signed)),
        Text(""),
        _by_layer(of),
        Paragraph(_legend(of), "dim"),
        Text(""),
        Paragraph(below[0], "bold"),
        Text(""),
        *paragraphs(below[1:]),
        Text(""),
    )


# --- by layer ------------------------------------------------------------------------------------


def _by_layer(of: Patched) -> FirstThatFits:
    """Damage both ways with intervals; where there is room, the other numbers' as well."""
    frames = [
        [of.whole(c.measure, c.source, c.target, layer) for c in patching.columns(of)[:6]]
        for layer in shown_layers(of)
    ]
    return FirstThatFits([_grid(of, frames, wide) for wide in (6, 4, 3, 2)])


def _grid(of: Patched, frames: Sequence[Sequence[pd.DataFrame]], wide: int) -> Grid:
    """The table by layer with the intervals of the first `wide` numbers."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    grid.add_column(Text("layer"), justify="right", no_wrap=True)
    for at, (plain, heading) in enumerate(_HEADINGS):
        words = f"{heading}\n[interval]" if at < wide else plain
        grid.add_column(Text(words), justify="right", no_wrap=True)
    for layer, row in zip(shown_layers(of), frames, strict=True):
        says = [short] * 4 + [share] * 2
        cells = [
            _cell(own, say, at < wide) for at, (own, say) in enumerate(zip(row, says, strict=True))
        ]
        grid.add_row(str(layer), *cells)
    return grid


_HEADINGS = (
    ("damage\na→b", "damage a→b"),
    ("damage\nb→a", "damage b→a"),
    ("base\n→b", "base→b"),
    ("random", "random"),
    ("won:\na", "won: a"),
    ("\nb", "won: b"),
)
"""What a column is called without and with intervals."""


def shown_layers(of: Patched) -> list[int]:
    """Every layer of a small model, evenly spaced ones of a large model; the last always."""
    step = -(-len(of.layers) // MOST_LAYERS)
    return sorted({*of.layers[::step], *of.layers[-1:]})


def _legend(of: Patched) -> str:
    skipped = len(shown_layers(of)) < of.run.n_layers
    words = [
        f"a: {of.a}; b: {of.b}; a→b: a's residual stream in b's run",
        f"damage: nats{_per_answer(of)} that the output moves from its own",
        f"base→b: {of.base}'s stream in b's run, the control",
        "random: as far from b, along another query's difference",
        f"won: share of its behaviour that its stream alone gives {of.base}",
        f"n = {of.found['n']}, {of.found['interval']['replicates']} bootstrap replicates",
    ]
    if any(of.rows("recovery", c, of.base)["value"].isna().any() for c in of.pair):
        words.append(f"–: undefined, {of.base} says the same already")
    if skipped:
        words.append("not every layer is shown")
    return "; ".join(words) + "."


def _per_answer(of: Patched) -> str:
    """Where answers have several tokens, or a chat's template precedes them, effects are sums."""
    return " per answer" if of.found.get("segments") is not None else ""


def short(x: float) -> str:
    """At most six characters, four decimals at most; a dash for what is undefined."""
    if x != x:
        return "–"
    if 0 < abs(x) < 5e-5:
        return "<1e-4"
    return f"{x:.4f}" if 0 <= x < 0.1 else number(x)


def share(x: float) -> str:
    """A recovery; a dash for what is undefined."""
    return "–" if x != x else f"{x:.3f}" if 0 <= x < 10 else f"{x:.2g}"


def _cell(frame: pd.DataFrame, say: Callable[[float], str], wide: bool) -> str:
    """A number, with its interval where there is one and it is asked for."""
    if frame.empty:
        return "–"
    value, low, high = (float(frame.iloc[0][name]) for name in ("value", "ci_low", "ci_high"))
    ends = f" [{say(low)}, {say(high)}]" if wide and low == low else ""
    return f"{say(value)}{ends}"


# --- findings ------------------------------------------------------------------------------------


def _lines(of: Patched) -> Iterator[str]:
    """One line per finding; what was not measured has none."""
    yield f"{of.depth_words} {patching.no_op(of)}".strip()
    yield from _best(of)
    yield from _segments(of)
    yield from _contexts(of)
    yield from _heads(of)
    yield from _greedy(of)
    yield from _function_vectors(of)
    yield from _attribution(of)
    yield from _ablation(of)


def _joined(title: str, table: Table, say: Callable[[list[Cell]], str], most: int = 6) -> str:
    said = [say(row) for row in table.rows[:most]]
    more = len(table.rows) - len(said)
    return f"{title}: {'; '.join(said)}{f'; and {more} more' if more else ''}."


def _best(of: Patched) -> Iterator[str]:
    table = patching.best_layers(of)
    if table.rows:
        n = table.rows[0][4].text
        yield _joined(
            f"Best layers (chosen on one half, scored on the other, n = {n})",
            table,
            lambda row: f"{row[0].text} layer {row[1].text}: {row[2].text} {_full(row[3])}",
        )


def _segments(of: Patched) -> Iterator[str]:
    """By which segment each side's behaviour is carried, the most first."""
    found = sorted(of.found.get("segments") or [], key=lambda best: -(best["value"] or 0.0))
    said = []
    for condition in of.pair:
        own = [best for best in found if best["condition"] == condition]
        if own:
            most, *rest = (
                f"{best['position']} {_full(estimate(best))} at layer {best['layer']}"
                for best in own
            )
            others = f" ({', '.join(rest)})" if rest else ""
            said.append(f"{condition} acts most through {most}{others}")
    if said:
        yield (
            f"Segments (recovery in {of.base}; layers chosen on one half, scored on the other, n = "
            f"{found[0]['n']}): {'; '.join(said)}. Late states of the answer's tokens are nearly "
            "the output itself."
        )


def _contexts(of: Patched) -> Iterator[str]:
    """What the exchange of keys, values and both costs, one line per direction."""
    table = patching.contexts(of)
    for move in dict.fromkeys(row[0].text for row in table.rows):
        own = [row for row in table.rows if row[0].text == move]
        said = ", ".join(f"{row[1].text} {_full(row[2])}" for row in own)
        yield f"Context, {move}, exchanged in all layers, damage [nats]: {said}."


def _full(cell: Cell) -> str:
    return f"{cell.text} {cell.extra}".strip()


def _heads(of: Patched, most: int = 5) -> Iterator[str]:
    words = {"lost": "most is lost without", "won": "most is won by"}
    for entry in of.found.get("heads") or []:
        if entry["share"] is None:
            continue
        named = []
        for condition, names in entry["under"].items():
            more = f" and {len(names) - most} more" if len(names) > most else ""
            named.append(f"{', '.join(names[:most])}{more} under {condition}")
        yield (
            f"Heads ({UNTESTED} one by one): {words.get(entry['by'], entry['by'])} "
            f"{'; '.join(named)}; {100 * entry['share']:.0f} % of the strongest {entry['k']} in "
            f"common, p = {number(entry['p'], 2)}."
        )


def _greedy(of: Patched, most: int = 6) -> Iterator[str]:
    for entry in of.found.get("greedy") or []:
        names, enough = entry["heads"], entry["enough"]
        shown = names[: enough or len(names)]
        said = ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")
        last = len(shown) - 1
        reached = "" if enough else f"; {100 * entry['goal']:.0f} % is not reached"
        if shown:
            yield (
                f"Few heads: {len(shown)} together give {entry['target']} "
                f"{number(entry['recovery'][last])} [{number(entry['ci_low'][last])}, "
                f"{number(entry['ci_high'][last])}] of {entry['source']}'s behaviour ({said})"
                f"{reached}; all heads {number(entry['all_heads'])}."
            )


def _function_vectors(of: Patched) -> Iterator[str]:
    table = patching.function_vectors(of)
    if table.rows:
        yield _joined(
            f"Function vectors (recovery in {of.base} at its best layer, {UNTESTED})",
            table,
            lambda row: (
                f"{row[0].text} {_full(row[3])} at layer {row[2].text}, "
                f"{of.base}'s own {row[4].text}, random {row[5].text}"
            ),
        )


def _attribution(of: Patched) -> Iterator[str]:
    said = []
    for one in patching.agreements(of):
        known = [x for x in one.spearman.values() if x is not None]
        if known:
            ends = (
                f" ({number(min(known), 2)} to {number(max(known), 2)})" if len(known) > 1 else ""
            )
            said.append(f"{one.site} by {one.by} {number(median(known), 2)}{ends}")
    if said:
        title = "First-order attribution against patching, Spearman, median of moves"
        yield f"{title}: {'; '.join(said)}."


def _ablation(of: Patched) -> Iterator[str]:
    for condition in of.pair:
        spare, bound = lora_parts.spare_kinds(of, condition), lora_parts.BOUND
        worst = [
            f"{row[1].text} {_full(row[2])}" for row in lora_parts.strongest(of, condition).rows
        ]
        worst += [f"no single {' or '.join(spare)}"] if spare else []
        if worst:
            title = f"Damage of more than {bound}, without part of {condition} [nats]"
            yield f"{title}: {'; '.join(worst)}."
    few, products = lora_parts.few_directions(of), lora_parts.by_products(of, most=1000)
    if few.rows:
        yield _joined(
            "Effect kept by the k largest directions of every module",
            few,
            lambda row: f"{row[0].text}, k = {row[1].text}: {row[3].text}",
        )
    if products.rows:
        yield _joined(
            f"By-products (much internal change, damage up to {lora_parts.BOUND})",
            products,
            lambda row: f"{row[0].text}, {row[1].text}: change {row[4].text}, damage {row[2].text}",
            most=3,
        )
