"""Cuts the manual into the passages that the recipe `support` answers from.

    python scripts/support_passages.py

A passage is a section of a page, of at most 1,500 characters; tables and code stay with the words
around them. The result is committed: a recipe's figures must not move with each edit of a page.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("tutorial", "howto", "explanation")
LEFT_OUT = ("dependencies.md", "testing.md")
TARGET = ROOT / "inferpool" / "models" / "data" / "support-passages.json"
MOST = 1_500
LEAST = 80


def passages(page: Path) -> list[dict[str, str]]:
    """The sections of one page, each under "page: title"."""
    parts = re.split(r"^(#+ .*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    title, found = parts[1].lstrip("# "), []
    for head, text in zip(parts[1::2], parts[2::2], strict=True):
        words = re.sub(r"\]\([^)]*\)", "]", text).replace("[", "").replace("]", "").strip()
        if len(words) >= LEAST:
            found.append({"title": f"{title}: {head.lstrip('# ')}", "text": words[:MOST]})
    return found


if __name__ == "__main__":
    found = [page for folder in PAGES for page in (ROOT / "docs" / folder).glob("*.md")]
    pages = sorted(page for page in found if page.name not in LEFT_OUT)
    made = [passage for page in pages for passage in passages(page)]
    TARGET.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf-8")
    sys.stdout.write(f"{len(made)} passages, {TARGET.stat().st_size} bytes\n")
