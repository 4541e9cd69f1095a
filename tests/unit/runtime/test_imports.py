"""The collector rests while something is imported, and only then."""

import gc

import pytest

from pipeline.runtime import imports


def test_the_collector_rests_within_and_works_afterwards():
    with imports.quick():
        assert not gc.isenabled()
        with imports.quick():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_works_again_after_an_import_that_fails():
    with pytest.raises(ImportError), imports.quick():
        raise ImportError
    assert gc.isenabled()
