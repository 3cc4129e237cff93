"""Images: where they come from, how they are prepared, how results are drawn."""
