"""Settings of the documentation: ``make docs`` writes it to build/docs."""

from sqlvec import __version__

project = "sqlvec"
author = "The sqlvec authors"
copyright = author
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"sqlvec {release}"

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
# Their base classes are all that the adapters' pages need of them, which takes long to import.
autodoc_mock_imports = ["langchain_core", "llama_index"]
# Bodies between dollar quotes are more than the SQL lexer knows.
suppress_warnings = ["misc.highlighting_failure"]
