"""Text that would break a page if it were anything but text."""

MARKUP = (
    "<script>window.hit=1;document.title='hit'</script>"
    '<img src=x onerror="window.hit=1"><svg onload=window.hit=1><style>*{display:none}</style>'
    "</title></style></small></b></td></tr></table></div></details></body></html>"
    '<a href="javascript:window.hit=1">link</a><base href=//evil.test><iframe srcdoc=x>'
    "<plaintext><textarea><!--]]>&lt;&#60;{{7*7}}{% raw %}${7*7}\"' onmouseover=window.hit=1 x='"
)
SHELL = "\x1b[31mred\x1b[2J"
CONTROLS = "".join(map(chr, {*range(0x20), *range(0x7F, 0xA0)} - {9, 10}))
SURROGATES = "\udfff\udc41\ud800"
DIRECTIONS = "\u2067\u2066\u2068\u200f\u061c\u202d\u202e"  # none of which is ended
UNSEEN = "\u200b\u2060\u2063\u206a\ufeff\u00ad\u180e\u3164\ufff9\U000e0041\U000e0101"
PILE = "Z" + "\u0301\u0489" * 300 + "\u0e19" + "\u0e49" * 300
UNBROKEN = "\u1100" * 300  # a syllable, to a browser
MEGABYTE = "x" * 1_000_000
HEBREW = "\u05e9\u05dc\u05d5\u05dd 12"

UNSHOWN = CONTROLS + SURROGATES + DIRECTIONS + UNSEEN
"""What a reader would not see, or what moves what he sees."""

HOSTILE = f"{MARKUP}\t\n{SHELL}{UNSHOWN}{PILE}{UNBROKEN}"
"""All of it but what is long, in one line or several."""

NAME = f"<script>hit=1<!--&lt;\x1b[31m\u202e{HEBREW}\u200b<img src=x onerror=hit=1>"
"""What may be the name of a file."""


def hostile(place: str, text: str = HOSTILE) -> str:
    """The text, with a mark behind it that says whose end this is."""
    return f"{text}{HEBREW} end of {place}."
