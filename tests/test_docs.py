"""What the documentation has to have, told without building it: `make docs` does the rest."""

from __future__ import annotations

import ast
import csv
import inspect
import re
from pathlib import Path

import torch

import fastwhiten
from tests import public_names

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
PAGES = sorted(DOCS.glob("*.md"))
NAMES = [name for name in fastwhiten.__all__ if name != "__version__"]


def test_the_api_page_takes_every_public_name() -> None:
    page = (DOCS / "api.md").read_text()
    # Without a list, autodoc's members of a module are those of its __all__...
    assert ".. automodule:: fastwhiten\n   :members:\n" in page
    # ... that are documented: one without a docstring would be left out in silence.
    for name in NAMES:
        public = getattr(fastwhiten, name)
        assert inspect.getdoc(public), name
        assert "Example" in inspect.getdoc(public), f"{name}: expected an example"


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    trees = re.findall(r"```\{toctree\}\n(?::.*\n)*((?:.+\n)*?)```", index)
    listed = "".join(trees).split()
    pages = [path.stem for path in PAGES if path.stem != "index"]
    assert sorted(listed) == sorted([*pages, "gallery/index"])


def test_pages_that_run_say_so() -> None:
    for path in PAGES:
        runs = "{code-cell}" in path.read_text()
        assert runs == path.read_text().startswith("---\nfile_format: mystnb\n"), path.name


def test_examples_are_in_the_gallery() -> None:
    """Sphinx-gallery takes folders with a header alone, and scripts that begin with a title."""
    for path in EXAMPLES.glob("**/*.py"):
        assert (path.parent / "GALLERY_HEADER.rst").exists(), path
        title = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
        assert len(title) > 1 and re.fullmatch(r"=+|-+", title[1]), (
            f"{path.name}: a title, underlined"
        )


def test_claims_about_others_have_a_source() -> None:
    with (DOCS / "features.csv").open(newline="") as lines:
        claims = list(csv.DictReader(lines))
    assert claims and all(all(claim.values()) for claim in claims)
    for table in {claim["table"] for claim in claims}:
        found = [(c["feature"], c["package"]) for c in claims if c["table"] == table]
        features, packages = ({pair[i] for pair in found} for i in (0, 1))
        assert len(found) == len(set(found)) == len(features) * len(packages), table


def test_a_users_file_has_every_public_name() -> None:
    tree = ast.parse(Path(public_names.__file__).read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fastwhiten"
    }
    assert set(fastwhiten.__all__) - used == set()
    # `make lint` runs mypy on it, strictly.
    assert '"tests/public_names.py"' in (ROOT / "pyproject.toml").read_text()


def test_a_users_file_runs() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    assert public_names.functions(x).isfinite().all()
    assert isinstance(public_names.layer(x), torch.nn.Module)
    assert public_names.others_models(x).weight.isfinite().all()
    assert torch.isfinite(public_names.whitener(x)(x)).all()
