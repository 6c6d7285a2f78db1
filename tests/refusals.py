"""Bad input is refused in one line: one assertion for all tests that list it."""

import pytest


def assert_refused(call, pattern):
    """`call` raises ValueError with one line that `pattern` is found in."""
    with pytest.raises(ValueError, match=pattern) as error:
        call()
    assert "\n" not in str(error.value)
