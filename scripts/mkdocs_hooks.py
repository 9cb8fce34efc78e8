"""Hooks of mkdocs.yml: the pages of the API reference and of the files beside docs/, and their places in the navigation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import api_reference  # mkdocs has this folder on its path while it loads hooks

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The reference stands behind the pages that mkdocs.yml names."""
    config.nav = [*(config.nav or []), {"Reference": api_reference.nav()}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages that lie in no folder."""
    from mkdocs.structure.files import File

    for source, name in api_reference.ADDED.items():
        text = (api_reference.ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=api_reference.rewritten(text, source)))
    for module in api_reference.modules().values():
        files.append(File.generated(config, module.page, content=api_reference.page(module)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links of documents lead to pages of the site."""
    if page.file.generated_by is not None:
        return markdown
    return api_reference.rewritten(markdown, f"docs/{page.file.src_uri}")
