"""docs/claims.md says what the code computes."""

import re

import pytest

from proofs import claims


@pytest.fixture(scope="module")
def counted():
    return claims.counted()


@pytest.mark.slow
def test_the_page_holds_every_claim_and_row_as_computed(counted):
    page = claims.PAGE.read_text()
    found, papers = counted
    assert len(found) >= 20
    for claim in found:
        assert f"| {claim.source} | {claim.says} | {claim.computed} | {claim.verdict} |" in page
    for source, rows in papers.items():
        assert f"## {source}, row by row" in page
        for row in rows:
            assert "| " + " | ".join(row) + " |" in page


def test_what_the_claims_rest_on():
    """The arithmetic of single convolutions, done by hand."""
    assert claims.cost(claims.conv(64, 5), 64, 35).multiply_adds == 25 * 64 * 64 * 35 * 35
    assert claims.cost(claims.conv(64, 3, 2), 64, 35).multiply_adds == 9 * 64 * 64 * 18 * 18
    assert sum((entries + 1) * features for entries, features in claims.ALEXNET) == 60_965_224
    assert claims.saving(18, 25) == "28.0 % less"
    assert claims.saving(9, 6) == "50.0 % more"


@pytest.mark.slow
@pytest.mark.parametrize("name", claims.KINDS)
def test_the_gradient_norms_are_those_of_the_page(name):
    """To one in a hundred: rounding differs from one CPU to another."""
    norms = claims.gradient_norms(name)
    row = next(
        line for line in claims.PAGE.read_text().splitlines() if f"`{name}`: ‖gradient‖" in line
    )
    without, with_heads = map(float, re.search(r"conv1 (\S+) without, (\S+) with", row).groups())
    assert norms["without"]["conv1"] == pytest.approx(without, rel=1e-2)
    assert norms["with"]["conv1"] == pytest.approx(with_heads, rel=1e-2)
