"""docs/REPORT.pdf out of REPORT.md: pandoc reads it, Typst sets it.

pip install -e ".[study]"
python -m study.make_pdf
"""

import hashlib

import pypandoc
import typst

from scripts.sweep_table import Parser
from study import figures
from study.files import whole

# What pandoc leaves to a template: paper, letters, tables that fit the page, pictures as wide as the text.
TEMPLATE = """
#set document(title: "TITLE", keywords: ("sha256 DIGEST",), date: none)
#set page(paper: "a4", margin: (x: 18mm, y: 20mm), numbering: "1")
#set text(font: "Libertinus Serif", size: 10pt, lang: "en")
#set par(justify: true)
#set heading(numbering: none)
#show heading.where(level: 1): set text(size: 20pt)
#show heading: set block(above: 1.6em, below: 0.9em)
#show raw: set text(size: 8.5pt)
#show raw.where(block: true): set text(size: 7.2pt)
#show link: set text(fill: rgb("#1c5fb0"))
#set table(inset: (x: 3pt, y: 2.5pt), stroke: (x, y) => if y == 1 { (top: 0.6pt) } else { none })
#show table: set text(size: 7pt, hyphenate: true)
#show table: it => { show raw: set text(size: 6.2pt); it }
#show table: set par(justify: false)
#show figure.where(kind: table): set block(breakable: true)
#show table.cell: set align(left)
#show table.cell.where(y: 0): strong
#set image(width: 100%)
#let horizontalrule = line(length: 100%, stroke: 0.4pt)
"""


def digest(report: str) -> str:
    """Of the text that a PDF was made of; stands among its keywords."""
    return hashlib.sha256(report.encode()).hexdigest()


def main() -> None:
    Parser(description="docs/REPORT.pdf out of REPORT.md.").parse_args()
    root = figures.ROOT
    report = (root / "REPORT.md").read_text(encoding="utf-8")
    body = pypandoc.convert_text(report, "typst", format="gfm")
    title = report.splitlines()[0].removeprefix("# ")
    document = TEMPLATE.replace("TITLE", title).replace("DIGEST", digest(report)) + body
    pdf = typst.compile(document.encode(), root=str(root))
    with whole(root / "docs" / "REPORT.pdf") as temporary:
        temporary.write_bytes(pdf)
    print(f"docs/REPORT.pdf: {len(pdf) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
