"""Regular expressions and phrases as automata over what token ids spell."""
