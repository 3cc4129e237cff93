"""Operators that resample a map: resizing, grids and regions of interest."""

from __future__ import annotations
