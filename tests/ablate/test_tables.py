import pytest

from tubelet import recipe
from tubelet.ablate import tables
from tubelet.types import TubeletError


@pytest.mark.parametrize("name", tables.names())
def test_every_table_reads_and_says_where_its_published_numbers_are_from(name):
    table = tables.named(name)
    assert table.title and table.rows
    assert len({row.name for row in table.rows}) == len(table.rows)
    known = [row for row in table.rows if row.published is not None]
    if known or (table.published and table.published.also):
        assert table.published and "arXiv" in table.published.source and "top-1" in table.published.measure


def test_the_published_numbers_are_those_of_the_paper():
    """Tong et al. 2022, tables 1a to 1d: Something-Something V2, top-1."""
    published = {
        "1a": [68.5, 69.2, 69.6, 69.3],
        "1b": [68.0, 69.6, 68.3, 61.5],
        "1c": [63.0, 68.9, 69.6, 69.2],
        "1d": [32.6, None, 69.6],  # its images are labelled ones
    }
    for number, values in published.items():
        assert [row.published for row in tables.find(number).rows] == values
    strategy = tables.find("1d").published
    assert strategy and [row["value"] for row in strategy.also] == [61.8, 65.2]


def test_a_table_is_found_by_its_name_and_by_its_number_in_the_paper():
    assert tables.find("mask") == tables.find("1b") == tables.find("b")
    with pytest.raises(TubeletError, match="no table is called 'mosk'; did you mean 'mask'"):
        tables.find("mosk")


@pytest.mark.parametrize("name", tables.names())
def test_every_option_that_a_table_sets_is_one_of_the_default_recipe(name):
    known = recipe.options("videomae", "vit")
    table = tables.named(name)
    for settings in (table.common, *(row.set for row in table.rows), *(row.first or {} for row in table.rows)):
        for key, value in settings.items():
            assert key in known
            known[key].read(value, key)
