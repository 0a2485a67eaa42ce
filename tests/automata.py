"""Reading an automaton on the host, which is what the device's reading is held to."""


def between(text, opening, closing):
    """What stands between the first opening tag and the next closing one; all without the first."""
    _, found, rest = text.partition(opening)
    return rest.partition(closing)[0] if found else text


def matches(automaton, text):
    """Whether a text, or bytes, lead the automaton to a match."""
    state = automaton.start
    for byte in text.encode() if isinstance(text, str) else text:
        state = automaton.transitions[state, byte]
    return automaton.accepting[state]
