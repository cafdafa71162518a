"""From one chunk's captured values, in all conditions, to accumulators.

    tally = measure(observed, apart, plan, scale)
    absorb_(total, tally)

The only place that knows which measure is made of which sites; the arithmetic is in the other
files of this room. Measures receive tensors, never a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from interp.design import ConditionPair
from interp.measures import DTYPE_NOISE, attention, routing, state
from interp.measures.attention import Changes
from interp.measures.layerwise import LayerParts, Values, by_layer, layer_groups
from interp.measures.output import Between, entropy, p_log_p
from interp.measures.plan import Observed, OutputDistances, Plan, Scale
from interp.measures.scores import SPLIT, ScoreSplit
from interp.measures.tally import Key, Tally, test_of
from interp.names import OUTPUT
from interp.noise import floor
from interp.significance import DifferencesByQuery
from interp.statistics import Ratio, SumsByQuery


def measure(
    observed: Mapping[str, Observed],
    apart: OutputDistances,
    plan: Plan,
    scale: Scale,
) -> Tally:
    """Every measure of every condition and pair on one chunk; `apart`: how far the outputs of the
    pairs are, `[batch, query_pos]`."""
    tally: Tally = {}
    grams = dict(site_grams(observed))
    collect(values(observed, apart, grams, plan), plan, scale, tally)
    collect(_answers(observed, plan, scale), plan, scale.at_answer(), tally)
    if "answer" in scale.labels:
        collect(_whole_answers(apart, plan, scale), plan, scale.by_query(), tally)
    for site, g in grams.items():
        tally[Key("gram", "", "", site)] = _mean_gram(g, scale)
        if plan.members:
            members = [list(observed).index(name) for name in plan.members]
            tally[Key("family_gram", "", "", site)] = _family_gram(g, members, scale)
    return tally


def collect(found: Iterable[Values], plan: Plan, scale: Scale, tally: Tally) -> None:
    """Put values per token into accumulators; a mean that has a control is tested against it."""
    tested = plan.controls.keys() | set(plan.controls.values())
    means: dict[Key, np.ndarray] = {}
    for key, numerator, denominator in found:
        below = denominator.cpu().numpy() if isinstance(denominator, Tensor) else denominator
        above = numerator.to(torch.float64).cpu().numpy()
        tally[key] = SumsByQuery.of(above, below, scale.positions)
        if key[1:3] in tested and not isinstance(denominator, Tensor):
            means[key] = above
    positions = scale.positions[..., : scale.tested]
    for key, value in means.items():
        control = plan.controls.get((key.condition, key.reference))
        if control is not None:
            other = means[Key(key.measure, *control, key.site)]
            rounding = floor(key.measure, plan.noise, value, other)
            tally[test_of(key)] = DifferencesByQuery.of(value, other, positions, rounding)


def values(
    observed: Mapping[str, Observed],
    apart: OutputDistances,
    grams: Mapping[str, Tensor],
    plan: Plan,
) -> Iterator[Values]:
    """(key, numerator, denominator) per token, `[batch, (layer,) (head,) query_pos]`."""
    noise = DTYPE_NOISE[observed[plan.base].logits.dtype]
    yield from _outputs(apart, plan.pairs)
    yield from _states(list(observed), grams, plan.pairs, plan.base, noise)
    if observed[plan.base].rows:
        yield from _rows(observed, plan)
        yield from _attention(observed, plan)
    if observed[plan.base].scores:
        yield from _scores(observed, plan, noise)
    if observed[plan.base].routing:
        yield from _routing(observed, plan)
    for name, seen in observed.items():
        if seen.pinned:
            yield from _pinned(name, seen, observed[plan.base], plan.base, noise)
        if seen.changes:
            yield from _changes(name, seen.changes, plan.base)
        if seen.splits:
            yield from _splits(name, seen.splits, plan.base)


def _outputs(apart: OutputDistances, pairs: Sequence[ConditionPair]) -> Iterator[Values]:
    for a, b in pairs:
        found = apart[a, b]
        yield Key("kl_divergence", a, b, OUTPUT), found.kl, 1.0
        yield Key("js_divergence", a, b, OUTPUT), found.js, 1.0
        yield Key("top1_agreement", a, b, OUTPUT), found.same, 1.0


def _answers(observed: Mapping[str, Observed], plan: Plan, scale: Scale) -> Iterator[Values]:
    """What is known of the tokens that predict an answer, `[query, row]`."""
    tokens = scale.answers
    known = tokens.spread(torch.where(scale.targets >= 0, 0.0, torch.nan))
    right = {
        name: tokens.spread(tokens.pick(seen.logits).argmax(-1) == scale.targets) == 1
        for name, seen in observed.items()
    }
    for name in observed:
        yield Key("accuracy", name, "", OUTPUT), right[name] + known, 1.0
    for a, b in plan.pairs:
        if plan.base not in (a, b):
            gained = ~right[plan.base] & right[b]
            yield Key("rec2ftp", a, b, OUTPUT), (gained & right[a]) + known, gained + known


def _whole_answers(apart: OutputDistances, plan: Plan, scale: Scale) -> Iterator[Values]:
    """What is known of an answer as a whole, `[query, 1]`."""
    tokens = scale.answers
    for a, b in plan.pairs:
        found = Between(*map(tokens.pick, apart[a, b]))
        kl = tokens.spread(found.kl).nansum(-1, keepdim=True)
        yield Key("sequence_kl", a, b, OUTPUT), kl, 1.0
        other = tokens.spread(~found.same).nansum(-1, keepdim=True)
        yield Key("answer_agreement", a, b, OUTPUT), other == 0, 1.0


def _states(
    names: Sequence[str],
    grams: Mapping[str, Tensor],
    pairs: Sequence[tuple[str, str]],
    base: str,
    noise: float,
) -> Iterator[Values]:
    index = {name: i for i, name in enumerate(names)}
    for site, g in grams.items():
        if site == "pattern":
            continue
        for a, b in pairs:
            i, j = index[a], index[b]
            yield Key("relative_l2", a, b, site), state.relative_l2(g, i, j), 1.0
            yield Key("cosine", a, b, site), state.cosine(g, i, j), 1.0
            if base not in (a, b):
                aligned = state.delta_alignment(g, i, j, index[base], noise)
                yield Key("delta_alignment", a, b, site), aligned, 1.0
                longer = state.delta_norm_ratio(g, i, j, index[base], noise)
                yield Key("delta_norm_ratio", a, b, site), longer, 1.0
                if site == "attn_out":
                    yield (
                        Key("sim_aou", a, b, site),
                        state.sim_aou(g, i, j, index[base], noise),
                        1.0,
                    )


def site_grams(observed: Mapping[str, Observed]) -> Iterator[tuple[str, Tensor]]:
    """Site name and its condition Gram, `[batch, layer, (head,) query_pos, cond, cond]`.

    A pattern's state is the square root of its content rows: their distance is that of Hellinger.
    """
    conditions = list(observed.values())
    for site in conditions[0].states:
        yield site, _grams([seen.states[site] for seen in conditions])
    if conditions[0].rows:
        yield "pattern", _grams([[p.sqrt() for p in seen.content] for seen in conditions])


def _grams(conditions: Sequence[Sequence[Tensor]]) -> Tensor:
    """Of all layers; the tokens of a pair of conditions lie together in memory."""
    parts = [state.gram(states).movedim((-2, -1), (0, 1)) for states in layer_groups(*conditions)]
    return torch.cat(parts, dim=3).movedim((0, 1), (-2, -1))


def _mean_gram(g: Tensor, scale: Scale) -> Ratio:
    """The mean over query tokens, without replicates, `[cond, cond, layer, (head,) label]`."""
    by_pair = g.movedim((-2, -1), (1, 2)).cpu().numpy()
    alone = np.ones((len(by_pair), 1))
    return Ratio.of(by_pair, 1.0, alone, scale.positions[..., : scale.tested])


def _family_gram(g: Tensor, members: Sequence[int], scale: Scale) -> SumsByQuery:
    """The same of the families' members, with replicates: the upper triangle, by row."""
    i, j = np.triu_indices(len(members))
    index = np.asarray(members)
    by_pair = g[..., index[i], index[j]].movedim(-1, 1).cpu().numpy()
    return SumsByQuery.of(by_pair, 1.0, scale.positions[..., : scale.tested])


def _rows(observed: Mapping[str, Observed], plan: Plan) -> Iterator[Values]:
    alone = ["prefix_mass", "prefix_mass_no_sink", "entropy", "entropy_no_sink", "content_entropy"]
    for name, seen in observed.items():
        for measure_name in alone:
            rows = torch.stack([getattr(r, measure_name) for r in seen.rows], dim=1)
            yield Key(measure_name, name, "", "pattern"), rows, 1.0


def _attention(observed: Mapping[str, Observed], plan: Plan) -> Iterator[Values]:
    found = LayerParts()
    for contents in layer_groups(*(seen.content for seen in observed.values())):
        content = dict(zip(observed, contents, strict=True))
        _content_js(found, "content_js", content, plan.pairs)
        if not plan.bos:
            rest = {name: attention.without_first(p) for name, p in content.items()}
            _content_js(found, "content_js_no_sink", rest, plan.pairs)
            for name, p in rest.items():
                key = Key("content_entropy_no_sink", name, "", "pattern")
                found.add(key, entropy(p))
    yield from found.whole()


def _content_js(
    found: LayerParts, name: str, content: Mapping[str, Tensor], pairs: Sequence[ConditionPair]
) -> None:
    known = {condition: p_log_p(p) for condition, p in content.items()}
    for a, b in pairs:
        js = attention.content_js(content[a], content[b], (known[a], known[b]))
        found.add(Key(name, a, b, "pattern"), js)


def _scores(observed: Mapping[str, Observed], plan: Plan, noise: float) -> Iterator[Values]:
    found = LayerParts()
    for scores in layer_groups(*(seen.scores for seen in observed.values())):
        known = {n: attention.unmasked(s) for n, s in zip(observed, scores, strict=True)}
        rows = {n: attention.unit_rows(s) for n, s in known.items()}
        base = known[plan.base]
        change = {
            n: attention.unit_rows(attention.score_change(s, base, noise)) for n, s in known.items()
        }
        for a, b in plan.pairs:
            same = attention.row_cosine(rows[a], rows[b])
            found.add(Key("sim_am", a, b, "attn_scores"), same)
            if plan.base not in (a, b):
                alike = attention.row_cosine(change[a], change[b])
                found.add(Key("sim_am_delta", a, b, "attn_scores"), alike)
    yield from found.whole()


def _routing(observed: Mapping[str, Observed], plan: Plan) -> Iterator[Values]:
    for a, b in plan.pairs:
        x, y = (list(zip(*observed[name].routing, strict=True)) for name in (a, b))
        yield Key("router_js", a, b, "router"), by_layer(routing.router_js, x[0], y[0]), 1.0
        same = by_layer(routing.expert_overlap, x[1], y[1])
        yield Key("expert_overlap", a, b, "router"), same, 1.0


def _pinned(
    name: str, seen: Observed, base: Observed, base_name: str, noise: float
) -> Iterator[Values]:
    """What a condition does at base's inputs: re-wiring.

    Without weights of its own, its change of attention is all input-driven. A row that changes by
    rounding alone (a JS of the square of its size) has no share.
    """
    found = LayerParts()
    patterns = (seen.content, base.content, seen.pinned, seen.base_weights or seen.content)
    for own, before, at_inputs, of_inputs in layer_groups(*patterns):
        known = p_log_p(before)
        changed = [at_inputs, own, *([of_inputs] if seen.base_weights else [])]
        residual, total, *inputs = (
            attention.content_js(content, before, (p_log_p(content), known)) for content in changed
        )
        total = total.where(total > noise**2, torch.nan)
        part = torch.zeros_like(total)
        if inputs:
            part = attention.weight_driven(total, residual, *inputs)
        found.add(Key("petrov_residual", name, base_name, "pattern"), residual)
        found.add(Key("rewiring_share", name, base_name, "pattern"), part, total)
    yield from found.whole()


def _changes(name: str, changes: Sequence[Changes], base_name: str) -> Iterator[Values]:
    """The terms of the heads' changes."""
    whole = torch.stack([change.whole for change in changes], dim=1)
    for i, term in enumerate(attention.CHANGES):
        share = torch.stack([change.shares[i] for change in changes], dim=1)
        yield Key(term, name, base_name, "z"), share, whole


def _splits(name: str, splits: Sequence[ScoreSplit], base_name: str) -> Iterator[Values]:
    """The terms of the change of the heads' scores."""
    whole = torch.stack([split.whole for split in splits], dim=1)
    for i, term in enumerate(SPLIT):
        share = torch.stack([split.shares[i] for split in splits], dim=1)
        yield Key(term, name, base_name, "attn_scores"), share, whole
