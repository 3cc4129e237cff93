"""Walking the graph backwards from units to pixels."""
