"""What headless Chromium makes of a page."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900")

# Written where --dump-dom shows it, once all is laid out.
_MEASURE = """<script id="measure">
document.querySelectorAll('details').forEach(x => x.open = true)
const turned = []
document.querySelectorAll('h1, h2, h3, p, small, span, th, td, summary, b').forEach(x => {
  for (const node of x.childNodes) {
    const text = node.nodeType == 3 ? node.data : '', at = Math.max(text.lastIndexOf('end of'), 0)
    if (text.trim().length < 2) continue
    const place = i => {
      const range = document.createRange()
      range.setStart(node, i)
      range.setEnd(node, i + 1)
      return range.getBoundingClientRect()
    }
    const first = place(at), second = place(at + 1)
    if (first.top == second.top && first.left > second.left) turned.push(text.slice(at))
  }
})
const last = document.currentScript.previousElementSibling.getBoundingClientRect()
document.documentElement.dataset.measured = JSON.stringify({
  width: document.documentElement.scrollWidth, hit: window.hit ?? null, title: document.title,
  turned, last: last.height})
</script>"""


def find_browser() -> str | None:
    """The path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def printed_dom(page: Path) -> str:
    """What a page has become in the browser, as HTML."""
    browser = find_browser()
    assert browser is not None
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [browser, *FLAGS, profile, "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=120
    )
    return done.stdout.decode()


def measure(page: Path, copy: Path) -> dict[str, Any]:
    """Measures a page by a script in a copy of it that, unlike the page, may run scripts.

    Returns:
      `width` in CSS pixels of the window's 1200; `hit` and `title`, which scripts of hostile text
      set; `turned`, the texts of which "end of", or the beginning, stands from right to left;
      `last`, the height of the last element of the body.
    """
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.[^>]*>", "", page.read_text())
    head, end, tail = text.rpartition("</body>")
    copy.write_text(head + _MEASURE + end + tail)
    found = re.search(r'<html[^>]* data-measured="([^"]*)"', printed_dom(copy))
    assert found is not None, "the script did not run to its end"
    return dict(json.loads(unescape(found[1])))
