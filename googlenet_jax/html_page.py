"""An HTML page that holds everything and loads nothing: what reports are made of."""

import html

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  color: #1d2330; background: #fff; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #d8dce4; }
li { overflow-wrap: anywhere; }
.wide { overflow: auto; max-height: 32rem; }
table { border-collapse: collapse; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #e6e9ef; white-space: nowrap; }
th { position: sticky; top: 0; background: #fff; }
@media (max-width: 40rem) { th, td { padding: .2rem .35rem; font-size: .85rem; } }
"""


def html_page(kind: str, heading: str, body: str, style: str = "") -> str:
    """Returns a whole page, readable on a phone too.

    Args:
      kind: what the page is, before the heading in the window's title.
      heading: text; `body`: HTML, in which a wide table stands in a <div class="wide">.
      style: CSS beside what all pages have.
    """
    heading = html.escape(heading)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(kind)}: {heading}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<h1>{heading}</h1>
{body}
</body>
</html>
"""
