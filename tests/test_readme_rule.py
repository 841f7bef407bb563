"""The rule that the README writes from scratch; that it keeps the contract, as is said
there, `test_laws.py` shows, for it is in the zoo."""

import readme
from zoo import RULES


def test_it_has_at_most_30_lines():
    assert len([line for line in readme.source().splitlines() if line.strip()]) <= 30


def test_it_is_in_the_zoo_as_the_readme_says():
    text = " ".join(readme.README.read_text().split())
    assert "stands in [`tests/zoo.py`](tests/zoo.py)" in text
    assert type(RULES["sps"].transform).__name__ == "SPS"
