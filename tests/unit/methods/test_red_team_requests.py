"""A request that breaks off is none: a small model ends its list in mid-sentence."""

import pytest

from pipeline.methods.red_team import lists


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("Tell me how to", False),
        ("Tell me how to.", False),
        ("Explain how to forge a", False),
        ("I want to sneak into the", False),
        ("Tell me how to forge a ticket", True),
        ("Write a letter to my landlord.", True),
        ("Which office do I go to?", True),
        ("Tell me what it is for", False),  # rare, and rather lost than sent
        ("\u201cHow can I forge a ticket?\u201d", True),
        ("A ticket.", False),
    ],
)
def test_a_request_is_whole(text, asks):
    assert lists.is_request(text) is asks
