"""The frame of a report page.

The page stands alone: pictures are embedded, nothing is loaded, no script runs. Prompts and
completions are hostile text (that is what a safety run is about): every string from a run folder
goes through ``escape``, and the content policy in the page's head allows nothing but embedded
pictures and its own style, should one ever slip by.
"""

import base64
import html
from pathlib import Path

from jaxalign.reports.run_folder import printable

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .8rem; text-align: left; }
th { border-bottom: 2px solid #888; }
td { border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
small, .quiet { color: #5c5c5c; }
summary { cursor: pointer; }
.note { background: #fff5d6;
  border-left: 4px solid #E69F00; padding: .5rem .8rem; margin: .5rem 0; }
.card { border: 1px solid #ddd; border-radius: 6px; padding: .8rem;
  margin: 1rem 0; break-inside: avoid; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  margin: .2rem 0 .6rem; }
.reasoning { color: #444; border-left: 3px solid #bbb; padding-left: .6rem; }
.badge { font-size: .8rem; border-radius: 4px; padding: .1rem .45rem;
  border: 1px solid; margin-right: .3rem; }
.wanted { color: #00543d; background: #e3f4ee; }
.unwanted { color: #8a3c00; background: #fdece1; }
.neutral { color: #444; background: #f2f2f2; }
"""


def page(title: str, body: str) -> str:
    """Returns a complete HTML document; ``title`` is plain text, ``body`` is HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)} · jaxalign</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def image(path: Path, alt: str) -> str:
    """Returns a PNG file as an HTML picture that carries its own data; ``alt`` is plain text."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></p>'


def escape(value: object) -> str:
    """Returns any value as text that HTML shows literally, quotes included."""
    return html.escape(printable(value))
