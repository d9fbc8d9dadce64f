"""Credit: the spending order, scope, time; never more than there is. Properties by hypothesis."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from billing.invoicing.model import CreditScope, Grant
from billing.invoicing.periods import months, uncovered
from billing.invoicing.spend import Segment, boundaries, shares_of, spend, spending_order
from billing.model import Line
from core.clock import month_bounds
from core.money import PICO_PER_CENT, round_to_cents

SPAN = (0, 600_000)
WHOLE = [Segment(SPAN, {})]


def line(cents: int, sku: str = "input", model: str = "m", kind: str = "charge") -> Line:
    if kind == "charge":
        return Line(sku, model, "", "", cents, PICO_PER_CENT)
    return Line(sku, model, "", "", 0, 0, "", kind, cents * PICO_PER_CENT)  # type: ignore[arg-type]


def grant(cents: int, name: str = "g", **values: object) -> Grant:
    made = Grant(
        name,
        "org",
        "prepaid",
        cents * PICO_PER_CENT,
        cents * PICO_PER_CENT,
        50,
        CreditScope(),
        0,
        0,
        0,
        0,
        "",
        0,
    )
    return replace(made, **values)  # type: ignore[arg-type]


def taken(lines: list[Line], grants: list[Grant], segments: list[Segment] | None = None) -> dict[str, int]:
    return {use.grant.id: use.cents for use in spend(lines, grants, segments or WHOLE)}


def test_the_spending_order() -> None:
    grants = [
        grant(1, "old prepaid", created_ms=1),
        grant(1, "new prepaid", created_ms=2),
        grant(1, "promotional", kind="promotional", created_ms=3),
        grant(1, "expires later", expires_ms=9),
        grant(1, "expires soon", expires_ms=8, created_ms=4),
        grant(1, "first of all", priority=1, created_ms=5),
    ]
    assert [g.id for g in spending_order(grants)] == [
        "first of all",
        "expires soon",
        "expires later",
        "promotional",
        "old prepaid",
        "new prepaid",
    ]


def test_a_scope_pays_only_for_its_lines_after_terms_and_discount() -> None:
    lines = [
        line(100, "input", "a"),
        line(-40, "input", "a", "terms"),
        line(100, "output", "b"),
        line(-16, "", "", "discount"),
        line(30, "", "", "minimum"),
    ]
    assert shares_of(lines) == {("input", "a"): 54, ("output", "b"): 90, ("", ""): 30}
    assert taken(lines, [grant(500, scope=CreditScope(models=("a",)))]) == {"g": 54}
    assert taken(lines, [grant(500, scope=CreditScope(skus=("output",)))]) == {"g": 90}
    assert taken(lines, [grant(500, scope=CreditScope(("b",), ("input",)))]) == {}
    assert taken(lines, [grant(500)]) == {"g": 174}


def test_credit_pays_for_usage_within_its_time() -> None:
    early, late = grant(500, "early", expires_ms=60_000), grant(500, "late", starts_ms=60_000)
    spans = boundaries(SPAN, [early, late])
    assert spans == [(0, 60_000), (60_000, 600_000)]
    segments = [
        Segment(spans[0], {("input", "m"): 25 * PICO_PER_CENT}),
        Segment(spans[1], {("input", "m"): 75 * PICO_PER_CENT}),
    ]
    assert taken([line(100)], [early], segments) == {"early": 25}
    assert taken([line(100)], [early, grant(500, "early too", expires_ms=60_000)], segments) == {"early": 25}
    assert taken([line(100)], [late, early], segments) == {"early": 25, "late": 75}
    assert taken([line(100), line(50, "", "", "minimum")], [late], segments) == {"late": 125}


def test_negative_lines_lower_what_credit_may_pay() -> None:
    assert taken([line(100, "input"), line(-70, "output")], [grant(500)]) == {"g": 30}
    assert taken([line(-70, "output")], [grant(500)]) == {}


SKUS, MODELS = st.sampled_from(["input", "output"]), st.sampled_from(["a", "b"])
LINES = st.lists(
    st.builds(
        line, st.integers(-300, 2000), SKUS, MODELS, st.sampled_from(["charge", "charge", "charge", "terms"])
    ),
    max_size=8,
)
SCOPES = st.builds(
    CreditScope,
    st.sampled_from([(), ("a",), ("a", "b")]),
    st.sampled_from([(), ("input",), ("output",)]),
)
TIMES = st.sampled_from([0, 60_000, 120_000, 300_000, 900_000])
GRANTS = st.lists(
    st.builds(
        lambda cents, scope, starts, expires, priority: grant(
            cents, scope=scope, starts_ms=starts, expires_ms=expires, priority=priority
        ),
        st.integers(1, 3000),
        SCOPES,
        TIMES,
        TIMES,
        st.integers(0, 3),
    ),
    max_size=6,
)


@given(LINES, GRANTS, st.data())
def test_credit_is_never_overspent(lines: list[Line], grants: list[Grant], data: st.DataObject) -> None:
    grants = [replace(g, id=f"g{n}") for n, g in enumerate(grants)]
    shares = {(each.sku, each.model_id) for each in lines}
    segments = [
        Segment(span, {share: data.draw(st.integers(-5, 100)) * PICO_PER_CENT for share in sorted(shares)})
        for span in boundaries(SPAN, grants)
    ]
    uses = spend(lines, grants, segments)
    total = sum(round_to_cents(each.amount_pico) for each in lines)
    assert sum(use.cents for use in uses) <= max(0, total)
    assert len({use.grant.id for use in uses}) == len(uses)
    for use in uses:
        assert 0 < use.cents * PICO_PER_CENT <= use.grant.left_pico
        eligible = sum(c for share, c in shares_of(lines).items() if use.grant.scope.covers(*share))
        assert use.cents <= eligible
        assert use.grant.starts_ms < SPAN[1]
    unlimited = [g for g in grants if g.scope == CreditScope() and not g.starts_ms and not g.expires_ms]
    unspent = sum(g.left_pico // PICO_PER_CENT for g in unlimited) - sum(
        use.cents for use in uses if use.grant in unlimited
    )
    due = max(0, total) - sum(use.cents for use in uses)
    assert unspent == 0 or due == 0 or all(cents <= 0 for cents in shares_of(lines).values())


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=6))
def test_what_is_covered_and_what_is_not_make_the_whole(covered: list[tuple[int, int]]) -> None:
    spans = [(start, start + length) for start, length in covered]
    gaps = uncovered(10, 40, spans)
    for at in range(10, 40):
        inside = any(start <= at < end for start, end in spans)
        assert inside != any(start <= at < end for start, end in gaps)
    assert gaps == sorted(gaps)


def test_months_are_in_order_and_whole() -> None:
    start = month_bounds(1_766_664_000_000)[0]
    found = list(months(start, start + 70 * 86_400_000))
    assert [end for _, end in found[:-1]] == [begin for begin, _ in found[1:]]
    assert len(found) == 3 and found[0][0] == start
    assert list(months(start, start)) == []
