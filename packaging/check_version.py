"""Fails unless a tag such as v1.2.3 is the version that pyproject.toml, the package and CITATION.cff state."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    """Where a version is stated -> the version."""
    package = (ROOT / "src/sfumato/__init__.py").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {
        "pyproject.toml": project["project"]["version"],
        "src/sfumato/__init__.py": re.findall(r'^__version__ = "(.+)"$', package, re.M)[0],
        "CITATION.cff": re.findall(r"^version: (.+)$", citation, re.M)[0],
    }


def main() -> int:
    """Compare; the argument is the tag."""
    tag = sys.argv[1].removeprefix("v")
    wrong = [f"{place} has {version}" for place, version in versions().items() if version != tag]
    if wrong:
        sys.stderr.write(f"the tag is {tag}, but {', '.join(wrong)}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
