"""Write the table of architectures into the documentation.

python recipes/architectures.py         # docs/architectures.md
"""

from __future__ import annotations

from pathlib import Path

from interp.validation.architectures import architecture_rows, markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def main() -> None:
    """Replace what stands between the marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{markdown(architecture_rows())}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
