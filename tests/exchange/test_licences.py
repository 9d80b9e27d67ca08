"""What cards say of licences: what the table says, what is unknown, and never a guess."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.exchange.licences import HUB_LICENCES, TABLE, Terms, findings, hub_licence, is_unknown, terms_of


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("CC0-1.0", Terms()),
        ("Apache-2.0", Terms(credit=True)),
        ("CC-BY-4.0", Terms(credit=True)),
        ("CC-BY-SA-4.0", Terms(credit=True, same_licence=True)),
        ("cc-by-nc-nd-3.0", Terms(credit=True, not_commercial=True, no_derivatives=True)),
        ("CC-BY-NC-SA-3.0-DE", Terms(credit=True, same_licence=True, not_commercial=True)),
        ("GPL-3.0", Terms(credit=True, same_licence=True)),
        ("House rules", None),
        ("unknown", None),
    ],
)
def test_a_licence_asks_what_its_name_or_the_table_says(licence, terms):
    assert terms_of(licence) == terms


def test_films_that_forbid_commercial_use_are_told_beside_a_base_that_allows_it():
    (told,) = findings({"CC-BY-NC-4.0": 2}, "Apache-2.0")
    assert told.startswith("CC-BY-NC-4.0, of 2 films, **forbids commercial use**, and the base is Apache-2.0")


def test_films_that_forbid_derivatives_are_told_whatever_the_base_is():
    for base in (None, "Apache-2.0", "unknown"):
        assert any("forbids passing on what is made from them" in each for each in findings({"CC-BY-ND-4.0": 1}, base))


def test_share_alike_is_told_where_the_model_has_another_licence():
    assert findings({"CC-BY-SA-4.0": 1}, None, "CC-BY-SA-4.0") == [
        "CC-BY-SA-4.0, of 1 film, asks that what is made from them has the same licence."
    ]
    (told,) = findings({"CC-BY-SA-4.0": 1}, None, "MIT")
    assert "has the same licence, and this model is said to be MIT" in told


def test_two_that_each_ask_for_themselves_are_told():
    assert any("each ask for themselves alone" in each for each in findings({"CC-BY-SA-4.0": 1, "GPL-3.0": 1}, None))


def test_what_nobody_has_said_is_told_as_unknown():
    told = findings({"unknown": 3, "House rules": 1}, "unknown")
    assert [each.partition(":")[0] for each in told] == [
        "House rules, of 1 film, is not in our table",
        "The licence of 3 films is **not known**",
        "The licence of the base is **not known**",
    ]


def test_free_films_on_a_free_base_ask_for_nothing():
    assert findings({"CC0-1.0": 5, "CC-BY-4.0": 1}, "Apache-2.0", "Apache-2.0") == []


@given(st.dictionaries(st.text(max_size=20), st.integers(1, 5), max_size=4), st.none() | st.text(max_size=20))
def test_whatever_is_said_of_licences_is_told_in_whole_sentences(data, base):
    for each in findings(data, base):
        assert each.endswith(".")


@pytest.mark.parametrize("licence", sorted(TABLE))
def test_the_table_has_names_of_the_hub(licence):
    assert licence in HUB_LICENCES
    assert hub_licence([licence.upper()]) == {"license": licence}
    assert not is_unknown(licence)
