"""Every setting of a run: sections, methods, recipes, validation, schema."""
