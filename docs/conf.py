"""The documentation site: `make docs` builds it, runs every snippet and takes warnings as errors.

Nothing is downloaded while it is built. What pages compute stands in `pages.py`.
"""

import logging
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "docs"
# For autodoc and the gallery, and for the kernels that run the pages' cells.
sys.path[:0] = [str(ROOT), str(HERE)]
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, sys.path[:2]))
# `python` in a cell is the one that builds the site.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# IPython as it comes, whatever the user's startup files do, and without its warnings of sockets.
profile = HERE / "_build" / "ipython" / "profile_default"
profile.mkdir(parents=True, exist_ok=True)
(profile / "ipython_kernel_config.py").write_text("get_config().Application.log_level = 'ERROR'\n")
os.environ["IPYTHONDIR"] = str(profile.parent)
logging.getLogger("traitlets").setLevel(logging.WARNING)  # it tells of every page that is run
# Cells that show a command's output have it as a terminal of this width does.
os.environ["COLUMNS"] = "100"

import fastwhiten  # noqa: E402

project, author, release = "fastwhiten", "fastwhiten contributors", fastwhiten.__version__
copyright = author
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py", "gallery/*.md5"]

myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # what hangs; a busy machine comes nowhere near it
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # tables

autodoc_member_order = "bysource"
autodoc_default_options = {"inherited-members": "Module"}  # convert_sync, nothing of nn.Module
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True  # attributes that are properties, too, have one entry

# References to our own names have to lead somewhere; no other project's index is at hand.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|np|numpy|collections|nn)\..*"),
    (r"py:.*", r"(Tensor|Self|Array|Report|Path|Iterable|Module|ProcessGroup|sklearn.*)"),
    (r"py:.*", r"(.*\.Same|.*\.Linear|Kind|Running|Shrinkage|Backend)"),  # aliases
    (r"py:.*", r"(optional|bool|str|int|float|tuple|list|dict|object|type|None|Any)"),
    (r"py:.*", r"(Value|Type|Import|Runtime|NotImplemented)Error|typing\..*|pathlib\..*"),
]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    # Others, such as a whole training, are shown and not run.
    "filename_pattern": r"/plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
}


def _without_links(app, path, parent, content):
    """Make names of links to files of the repository, which have no page here, in included text."""

    def name(link):
        inside = (HERE / path.parent / link[2]).exists()
        return f"`{link[1]}`" if inside else link[0]

    content[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", name, content[0])


def setup(app):
    """Connect what this file brings."""
    app.connect("include-read", _without_links)


smartquotes = False  # they would make dashes of options
html_theme = "furo"
html_title = f"fastwhiten {release}"
html_copy_source = False
