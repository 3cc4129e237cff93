"""Scans that are kept on disk, go on where they stopped, and are shared out among processes and machines."""
