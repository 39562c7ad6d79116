"""Tables of results: a config of rows, columns and seeds expands to runs, and their results to Markdown and more."""
