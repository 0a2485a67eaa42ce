"""Time left in words, and of counted work."""

import pytest

from jaxalign.host.progress import Outlook, roughly


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (20, "less than a minute"),
        (40, "about 1 min"),
        (11 * 60 + 25, "about 11 min"),
        (59.6 * 60, "about 1 h"),
        (2 * 3600 + 13 * 60, "about 2 h 10 min"),
    ],
)
def test_times_are_rough(seconds, words):
    assert roughly(seconds) == words


def test_the_second_batch_tells_how_long_the_others_take():
    """The first takes 30 s and compiles; the second has 16 requests in 8 s: 60 are left, 30 s."""
    outlook = Outlook()
    said = [outlook.seconds_left(*given) for given in ((0, 100, 5.0), (24, 100, 35.0))]
    assert said == [None, None]
    assert outlook.seconds_left(40, 100, 43.0) == 30.0
    assert outlook.seconds_left(56, 100, 51.0) is None


def test_what_has_no_known_end_has_no_time_left():
    outlook = Outlook()
    assert [outlook.seconds_left(n, None, float(n)) for n in range(4)] == [None] * 4
