"""Reports: records shown to people, in a terminal, in files, on a page."""
