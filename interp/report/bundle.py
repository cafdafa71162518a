"""What makes the report one file that needs no network: plotly.js packed, data escaped, a policy.

    plotly = packed_plotly()
    policy([plotly.source_hash, script_hash(loader)])

The page holds plotly.js gzipped; its loader unpacks it with `DecompressionStream` and inserts it as
an inline script. The content security policy names the sha256 of exactly two scripts, the loader
and the unpacked plotly.js: no `unsafe-inline`, no `unsafe-eval`, no `blob:`, so that markup in a
token can run nothing even if it got past the escaping.

plotly.js is the part of it that draws on axes, a third of the whole (MIT licence, in its first
lines): `npm pack plotly.js-cartesian-dist-min@VERSION`, `gzip -9n` of its `.min.js`. VERSION is
that of the plotly package's own plotly.js.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

PLOTLY = "plotly-cartesian.min.js.gz"


@dataclass(frozen=True)
class Packed:
    """plotly.js as gzip in base64, and the policy's hash of what it unpacks to."""

    payload: str
    source_hash: str


@cache
def packed_plotly() -> Packed:
    """The plotly.js that pages hold."""
    gzipped = files("interp.report").joinpath(PLOTLY).read_bytes()
    return Packed(base64.b64encode(gzipped).decode(), _hash(gzip.decompress(gzipped)))


def packed(content: bytes) -> str:
    """gzip in base64: nothing in it can end the element around it. The same bytes every time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return base64.b64encode(packer.compress(content) + packer.flush()).decode()


def script_hash(script: str) -> str:
    """The content security policy's name of an inline script."""
    return _hash(script.encode())


def _hash(source: bytes) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source).digest()).decode()


def policy(hashes: Iterable[str]) -> str:
    """The page's content security policy: these scripts, inline styles, pictures it holds."""
    scripts = " ".join(f"'{found}'" for found in hashes)
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'none'; frame-src 'none'; object-src 'none'; "
        "base-uri 'none'; form-action 'none'"
    )
