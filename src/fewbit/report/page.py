"""Sections into one file: templates filled (all text escaped), styles and scripts inside, a size that opens anywhere."""

import json
from pathlib import Path
from typing import Any

from fewbit.errors import FewbitError

LIMIT = 5_000_000  # bytes
TEMPLATES = Path(__file__).with_name("templates")


def page(title: str, sections: list[dict[str, Any]], missing: list[dict[str, str]], data: dict[str, Any]) -> str:
    """sections: [{"id", "title", …what its template ID.html reads}]; missing: [{"what", "why", "how"}] of what is not shown;
    data: the record that the figures are from, readable in the page too."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": str}
    text = environment.get_template("page.html").render(
        title=title,
        sections=sections,
        missing=missing,
        data=json.loads(json.dumps(data, default=str)),
        style=(TEMPLATES / "style.css").read_text(),
        scripts=[(TEMPLATES / f"{s['script']}.js").read_text() for s in sections if s.get("script")],
    )
    if len(text.encode()) > LIMIT:
        raise FewbitError(f"the page would be {len(text.encode()):,} bytes, more than {LIMIT:,}; make a shorter --film")
    return text
