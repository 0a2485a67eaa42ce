"""What 8 bits cost, on a tiny random model."""

from experiments.benchmarks.int8_base import Command, run


def test_it_compares_the_base_in_8_bits_with_the_base_as_it_is(tiny_model_folder, capsys):
    run(Command(model=str(tiny_model_folder), requests=3, max_new_tokens=8))
    tokens, _, _, *rows = capsys.readouterr().out.splitlines()
    assert tokens.endswith("tokens of 3 answers")
    cells = [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows if row]
    assert [tuple(row[:2]) for row in cells] == [
        ("as it is", "float32"),
        ("as it is", "bfloat16"),
        ("int8", "float32"),
        ("int8", "bfloat16"),
    ]
    exact, rounded, int8, _ = (float(row[2]) for row in cells)
    assert exact == 0 and 0 < rounded < 0.1 and 0 < int8 < 0.1
