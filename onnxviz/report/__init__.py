"""The HTML report: typed data first, then templates."""
