"""Hooks of mkdocs: the pages that lie beside docs/ in the repository, and links to files that are not pages.

README.md, CHANGELOG.md and CONTRIBUTING.md become pages of the site, so that their text is written once.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of OUTSIDE, with their links relative to docs/."""
    root = Path(config.config_file_path).parent
    for name, page in OUTSIDE.items():
        text = re.sub(r"\]\((?!https?:|#)(?P<target>[^)]+)\)", relative_to_docs, (root / name).read_text())
        files.append(File.generated(config, page, content=text))
    return files


def relative_to_docs(link: re.Match[str]) -> str:
    """A link of a page in the repository's root -> the same link of a page in docs/."""
    target = link["target"]
    return f"]({target.removeprefix('docs/') if target.startswith('docs/') else f'../{target}'})"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside of docs/: pages where the site has them, else the file in the repository."""

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        return f"]({OUTSIDE.get(target) or f'{config.repo_url}/blob/main/{target}'})"

    return re.sub(r"\]\(\.\./(?P<target>[^)]+)\)", link, markdown)
