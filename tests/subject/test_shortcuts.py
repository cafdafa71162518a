"""What a run leaves out changes nothing of what is read, to the bit."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from interp.capture import capture, keep
from interp.conditions import Base, Lora, Prompt
from interp.edits import Edit, replace
from interp.names import Site
from interp.queries import Encoded
from interp.subject import Batch, Subject, load

READ = ("pattern", "q", "k", "v", "z")


@pytest.fixture(scope="module", params=sorted(tiny_models.CONFIGS))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_models.save_model(request.param, folder / "model")
    adapter = tiny_models.save_adapter(
        model, folder / "lora", tiny_models.all_targets(request.param)
    )
    conditions = {"base": Base(), "prompt": Prompt(text="a b c"), "lora": Lora(str(adapter))}
    return load(str(model), conditions, ["a b"])


def test_attention_alone_is_what_it_is_with_mlps(subject: Subject) -> None:
    """Every block's input is another run's: what heads do does not depend on the MLPs."""
    assert subject.anatomy.plain_mlps
    batch = Batch.of([Encoded("1", "", (5, 6, 7)), Encoded("2", "", (8, 9))])
    entries = dict.fromkeys(subject.sites("resid_pre"), keep)
    base = subject.settings["base"]
    own = capture(subject, base, batch, subject.prefill(base), entries)
    edits = [Edit(site, replace(own.values[site])) for site in entries]
    read = {site: keep for site in subject.anatomy.points if site.name in READ}
    for name, setting in subject.settings.items():
        cache = subject.prefill(setting)
        whole = capture(subject, setting, batch, cache, read, edits, last=True)
        alone = capture(subject, setting, batch, cache, read, edits, last=True, attention_only=True)
        assert read.keys() == alone.values.keys()
        for site in read:
            assert torch.equal(alone.values[site], whole.values[site]), (name, site)


def test_blocks_above_do_not_run_and_change_nothing_below(subject: Subject) -> None:
    batch = Batch.of([Encoded("1", "", (5, 6, 7)), Encoded("2", "", (8, 9))])
    end = subject.n_layers - 1
    read = {site: keep for site in subject.anatomy.points if site.layer < end}
    above = Site("resid_pre", end)
    for name, setting in subject.settings.items():
        cache = subject.prefill(setting)
        whole = capture(subject, setting, batch, cache, read | {above: keep})
        below = capture(subject, setting, batch, cache, read, end=end, last=True)
        for site in read:
            assert torch.equal(below.values[site], whole.values[site]), (name, site)
    with pytest.raises(KeyError):
        capture(subject, setting, batch, cache, {above: keep}, end=end).values[above]


def test_mlps_run_again_afterwards(subject: Subject) -> None:
    batch = Batch.of([Encoded("1", "", (5, 6, 7))])
    base = subject.settings["base"]
    cache = subject.prefill(base)
    before = subject.run(base, batch, cache)
    without = subject.run(base, batch, cache, attention_only=True)
    assert not torch.allclose(without, before)
    assert torch.equal(subject.run(base, batch, cache), before)
