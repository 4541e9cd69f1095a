"""The data set that Chain of Hindsight reads from its source."""

from pipeline.methods import comparisons

COMPARISONS = comparisons.schema("comparisons", "Comparisons of the source", "chain-of-hindsight")
