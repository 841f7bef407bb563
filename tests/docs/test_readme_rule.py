"""The rule that the README writes from scratch is short and in the zoo.

The README says that it keeps the contract; the tests of laws check that.
"""

from pathlib import Path

from support import readme, zoo


def test_the_rule_has_at_most_30_lines():
    assert len([line for line in readme.source().splitlines() if line.strip()]) <= 30


def test_the_rule_is_in_the_zoo_as_the_readme_says():
    text = " ".join(readme.README.read_text().split())
    path = Path(zoo.__file__).relative_to(readme.README.parent)
    assert f"stands in [`{path}`]({path})" in text
    assert type(zoo.RULES["sps"].transform).__name__ == "SPS"
