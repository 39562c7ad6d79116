"""Tables of results: a config of rows, columns and seeds expands to runs; their results become pages."""
