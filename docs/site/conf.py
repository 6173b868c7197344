"""How Sphinx reads the documents (:mod:`docs.site.__main__`)."""

import meshproto

project = "meshproto"
version = release = meshproto.__version__
copyright = "the authors of meshproto"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
include_patterns = ["*.md", "docs/**.md", "reference/**.md"]
root_doc = "index"

myst_heading_anchors = 4  # as a forge has them: documents link to headings
default_role = "literal"  # what docstrings put into single backquotes

autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 100

# Examples have ... in place of what differs from one machine to another, which is no JSON.
suppress_warnings = ["misc.highlighting_failure"]

viewcode_follow_imported_members = False

html_theme = "furo"
html_title = "meshproto"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
