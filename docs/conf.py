"""How `make docs` builds the pages: Sphinx with MyST (Markdown) and autodoc (docstrings); warnings are errors."""

from __future__ import annotations

from feature_gan_kd import __version__

project = "feature_gan_kd"
author = "The feature_gan_kd contributors"
copyright = "the feature_gan_kd contributors, Apache-2.0"  # noqa: A001
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "examples"]

# Links to headings of other pages are checked down to the third level.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# Docstrings are Google style; a word in single backticks is code.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"feature_gan_kd {version}"
html_show_sourcelink = False
html_copy_source = False
