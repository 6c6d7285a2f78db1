"""Files that are written whole, tables, progress, where an output comes from: nothing here knows the mathematics."""
