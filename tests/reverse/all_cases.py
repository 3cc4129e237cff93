"""Every one-node model: those of the first operators, and one list for each family that joined them."""

from __future__ import annotations

from tests.reverse import cases, cases_convolution, cases_elementwise, cases_indexing
from tests.reverse.cases import Case

CASES: tuple[Case, ...] = (
    *cases.CASES,
    *cases_convolution.CASES,
    *cases_elementwise.CASES,
    *cases_indexing.CASES,
)
