"""The site builds without a warning, and opening it asks no other host for anything."""

import importlib
import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# What a browser fetches by itself.
LOADS = {
    "img": "src",
    "script": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}


class Page(HTMLParser):
    """What a page loads, links to, and can be linked at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.maths = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.ids.add(given.get("id", ""))
        self.maths += tag == "math"
        if tag in LOADS and given.get("rel") != "canonical" and LOADS[tag] in given:
            self.loads.append(given[LOADS[tag]])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, Page]:
    """All pages of a strict build; one warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    pages = {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in folder.rglob("*.html")}
    styles = {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in folder.rglob("*.css")}
    for name, text in styles.items():
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", text), name
    site.files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {name: Page(text) for name, text in pages.items()}


def test_nothing_is_loaded_from_elsewhere(site):
    for name, page in site.items():
        for target in page.loads:
            assert target.startswith("data:image/png") or "//" not in target, f"{name} loads {target}"


def test_links_inside_the_site_lead_to_what_is_there(site):
    for name, page in site.items():
        if name == "404.html":  # its links are absolute: it is shown at any address
            continue
        for target in [*page.links, *page.loads]:
            if target.startswith(("http:", "https:", "mailto:", "data:", "#__", "javascript:")):
                continue
            file, _, anchor = target.partition("#")
            there = Path(name).parent / unquote(file) if file else Path(name)
            parts: list[str] = []
            for part in there.parts:
                parts = parts[:-1] if part == ".." else [*parts, part]
            where = "/".join(parts) or "index.html"
            if where in site:
                assert not anchor or unquote(anchor) in site[where].ids, f"{name} -> {target}"
            else:
                assert (ROOT / "docs" / where).exists() or where.startswith("assets/"), f"{name} -> {target}"


def test_formulas_are_mathml(site):
    for page in DOCS.glob("*.md"):
        formulas = len(re.findall(r"^\$\$$", page.read_text(encoding="utf-8"), re.M)) // 2
        assert site[f"{page.stem}.html"].maths >= formulas
    assert site["concepts.html"].maths > 30


def test_every_public_name_is_in_the_reference(site):
    ids = set().union(*(page.ids for name, page in site.items() if name.startswith("api/")))
    rooms = re.findall(r"^::: (sfumato[.\w]+)", "\n".join(p.read_text() for p in DOCS.glob("api/*.md")), re.M)
    assert len(rooms) >= 14
    for room in rooms:
        module = importlib.import_module(room)
        for name in module.__all__:
            documented = getattr(getattr(module, name), "__doc__", None)
            own = getattr(getattr(module, name), "__module__", "").startswith("sfumato")
            if documented and own and isinstance(getattr(module, name), type):
                assert f"{room}.{name}" in ids, f"{room}.{name}"


def test_every_page_is_in_the_navigation_or_gets_there(site):
    named = set(re.findall(r"- ([\w/-]+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M))
    there = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*") if p.suffix in (".md", ".ipynb")}
    assert named <= there
    assert {name for name in there - named if "/" in name} == set()
    first = site["index.html"].links
    for name in there:
        page = re.sub(r"\.(md|ipynb)$", ".html", name)
        assert page in site
        assert any(page in links.links or page == "index.html" for links in site.values()) or page in first, name


def test_a_broken_link_or_a_lost_page_would_be_found(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# A\n\n[b](nowhere.md)\n")
    config = {"site_name": "x", "docs_dir": "docs", "strict": True, "nav": ["index.md"], "plugins": []}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    with pytest.raises(Abort):
        build(load_config(str(tmp_path / "mkdocs.yml"), site_dir=str(tmp_path / "site")))


def test_the_hooks_convert_what_they_should():
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    shown = hooks.on_page_content(r'<p><span class="arithmatex">\(a \lt b\)</span></p>')
    assert "<math" in shown
    assert "arithmatex" not in shown
    shown = hooks.on_page_content("<p><code>a --b-c</code></p><pre><span></span><code>--d</code></pre>")
    assert shown == '<p><code>a <span class="option">--b-c</span></code></p><pre><span></span><code>--d</code></pre>'
    shown = hooks.on_page_content(f'<td style="x">1 &plusmn; 2</td><td>{"a b " * 7}</td><td>neither of the two</td>')
    assert re.findall(r'<td[^>]*?(?: class="(\w+)")?>', shown) == ["short", "long", ""]
    assert hooks.on_page_markdown("[`t.py`](../tests/t.py) [x](x.md)", page=None) == "`t.py` [x](x.md)"
    assert hooks.on_page_markdown("[n](../n.ipynb#a)", page=None) == "[n](../n.md#a)"
    cells = [
        {"cell_type": "markdown", "source": ["# T\n", "b"]},
        {"cell_type": "code", "source": "1", "outputs": [{"output_type": "stream", "text": ["one\n"]}]},
    ]
    shown = hooks.notebook_markdown({"cells": cells})
    assert shown == "# T\nb\n\n```python\n1\n```\n\n```{ .text .output }\none\n```\n"
