"""Mathematical functions of one operand."""

from __future__ import annotations
