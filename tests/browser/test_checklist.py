"""The checklist of lesson 15 prints on one page of A4."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lab import ROOT


def test_it_prints_on_one_page(chromium: Any, tmp_path: Path) -> None:
    page = chromium.new_page()
    try:
        page.goto((ROOT / "notebooks" / "checklist.html").as_uri())
        content = page.pdf(format="A4", prefer_css_page_size=True)
    finally:
        page.close()
    assert len(re.findall(rb"/Type\s*/Page[^s]", content)) == 1
    (width,) = {float(one) for one in re.findall(rb"/MediaBox\s*\[0 0 ([\d.]+)", content)}
    assert abs(width - 595) < 2  # 210 mm in points
