"""The rule that the README writes from scratch, for the zoo."""

import re
from pathlib import Path
from typing import Any

from contrib_core import AbstractTransform


README = Path(__file__).parents[2] / "README.md"


def source() -> str:
    """The block of the README that defines the rule."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (block,) = (b for b in blocks if "(AbstractTransform" in b)
    return block


def rule() -> AbstractTransform:
    """An instance of the rule."""
    namespace: dict[str, Any] = {"__name__": "readme_rule"}
    exec(compile(source(), "README.md", "exec"), namespace)
    return namespace["SPS"]()
