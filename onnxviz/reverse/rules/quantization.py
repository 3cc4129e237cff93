"""Quantised operators: straight through, with dequantised weights."""

from __future__ import annotations
