"""The data set that the preference arm reads from its source."""

from pipeline.methods import comparisons

SOURCE_PAIRS = comparisons.schema("source_pairs", "Preference pairs of the source", "preference")
