"""What the site needs beyond Markdown: maths as MathML, notebooks as pages, links to files of the repository.

MkDocs calls the functions named `on_*`; none of them writes into docs/.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

GUIDES = "How-to guides"

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.S)
_NOTEBOOK = re.compile(r"(\]\((?!https?:)[^)#]+)\.ipynb([)#])")
_CODE = re.compile(r"(?<!</span>)<code>[^<]*</code>")
_OPTION = re.compile(r"(?<=[\s>])--[\w-]+")
_CELL = re.compile(r"<td([^>]*)>(.*?)</td>", re.S)
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:README|CHANGELOG|CONTRIBUTING|tests|src|packaging|results)[^)]*\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages that the navigation does not name at the end of the guides, and say so."""
    named = set(_leaves(config.nav or []))
    folder = Path(config.docs_dir)
    rest = sorted(page.name for page in folder.glob("*.md") if page.name not in named)
    for section in config.nav or []:
        if GUIDES in section:
            section[GUIDES] += rest
    config.nav = _as_pages(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Turn each notebook into a page, with its outputs."""
    for file in [one for one in files if one.src_uri.endswith(".ipynb")]:
        files.remove(file)
        notebook = json.loads(Path(file.abs_src_path or "").read_text(encoding="utf-8"))
        name = file.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, name, content=notebook_markdown(notebook)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Files of the repository that are not part of the site lose their link; notebooks are linked as pages."""
    return _NOTEBOOK.sub(r"\1.md\2", _OUTSIDE.sub(r"\1", markdown))


def on_page_content(content: str, **_: Any) -> str:
    """Formulas become MathML, which browsers draw by themselves; options and cells are marked for the style sheet."""
    content = _INLINE.sub(lambda match: _mathml(match[1], "inline"), content)
    content = _BLOCK.sub(lambda match: f'<div class="formula">{_mathml(match[1], "block")}</div>', content)
    content = _CODE.sub(lambda match: _OPTION.sub(r'<span class="option">\g<0></span>', match[0]), content)
    return _CELL.sub(_cell, content)


def on_post_page(output: str, config: MkDocsConfig, **_: Any) -> str:
    """The first page is named like the site; its title says so once."""
    name = config.site_name
    return output.replace(f"<title>{name} - {name}</title>", f"<title>{name}</title>")


def notebook_markdown(notebook: dict[str, Any]) -> str:
    """The cells of a notebook as Markdown: text, code, and what the code put out."""
    parts = []
    for cell in notebook["cells"]:
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += [_output(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"```{{ .text .output }}\n{_text(output['text']).rstrip()}\n```"
    data = output["data"]
    if "image/png" in data:
        uri = "data:image/png;base64," + _text(data["image/png"]).replace("\n", "")
        return f'<img class="output" alt="Figure drawn by the cell above" src="{uri}">'
    return f"```{{ .text .output }}\n{_text(data['text/plain'])}\n```"


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _cell(match: re.Match[str]) -> str:
    """A cell of a table whose text is so short that it stays on one line, or so long that it needs some width."""
    length = len(html.unescape(re.sub(r"<[^>]+>", "", match[2])).strip())
    kind = ' class="short"' if length <= 16 else ' class="long"' if length > 24 else ""
    return f"<td{match[1]}{kind}>{match[2]}</td>"


def _mathml(latex: str, display: str) -> str:
    drawn = str(convert(html.unescape(latex).strip(), display=display))
    return drawn.replace("<mi>log</mi>", '<mo form="infix" lspace=".17em" rspace=".17em">log</mo>')


def _leaves(nav: list[Any]) -> list[str]:
    """All file names of a navigation."""
    found: list[str] = []
    for entry in nav:
        if isinstance(entry, str):
            found.append(entry)
        else:
            for value in entry.values():
                found += [value] if isinstance(value, str) else _leaves(value)
    return found


def _as_pages(nav: list[Any]) -> list[Any]:
    """The same navigation, notebooks under the names of their pages."""
    if isinstance(nav, list):
        return [_as_pages(entry) for entry in nav]
    if isinstance(nav, dict):
        return {name: _as_pages(value) for name, value in nav.items()}  # type: ignore[return-value]
    return re.sub(r"\.ipynb$", ".md", nav)
