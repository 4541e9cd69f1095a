"""What a schema says of its columns holds for every data set, since `setbacks show` knows columns by their
names alone."""

from collections import defaultdict

from pipeline.registry import WRITTEN
from pipeline.schema import HARMFUL, HARMLESS, INSTRUCTIONS, STAGES, UNKNOWN


def test_a_name_means_the_same_in_every_data_set():
    kinds = defaultdict(set)
    for schema in (INSTRUCTIONS, *WRITTEN):
        for column in schema.columns:
            kinds[column.name].add(column.text)
    assert not {name: found for name, found in kinds.items() if len(found) > 1}


def test_what_holds_a_text_is_said_of_known_kinds():
    columns = [column for schema in WRITTEN for column in schema.columns]
    assert {column.text for column in columns} == {None, HARMLESS, UNKNOWN, HARMFUL}


def test_what_a_run_writes_has_a_card_and_a_stage():
    assert all(schema.title and schema.tags and schema.stage in STAGES for schema in WRITTEN)
    assert len({schema.name for schema in WRITTEN}) == len(WRITTEN)
