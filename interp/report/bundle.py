"""What makes the report one file that needs no network: plotly.js packed, data escaped, a policy.

    plotly = packed_plotly()
    policy([plotly.source_hash, script_hash(loader)])

The page holds plotly.js gzipped; its loader unpacks it with `DecompressionStream` and inserts it as
an inline script. The content security policy names the sha256 of exactly two scripts, the loader
and the unpacked plotly.js: no `unsafe-inline`, no `unsafe-eval`, no `blob:`, so that markup in a
token can run nothing even if it got past the escaping.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Packed:
    """plotly.js as gzip in base64, and the policy's hash of what it unpacks to."""

    payload: str
    source_hash: str


@cache
def packed_plotly() -> Packed:
    """The plotly.js that came with the installed plotly package."""
    source = files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    source = source.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    packed = gzip.compress(source, compresslevel=9, mtime=0)
    return Packed(base64.b64encode(packed).decode(), _hash(source))


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
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def escaped_json(text: str) -> str:
    """JSON text with every character escaped that could end the element around it."""
    return text.translate(_ESCAPES)
