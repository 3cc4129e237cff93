"""Operators that pick elements by index, or put them there."""

from __future__ import annotations
