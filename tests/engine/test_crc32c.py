"""Test of combining checksums of neighbouring byte strings."""

from __future__ import annotations

import google_crc32c
from hypothesis import given
from hypothesis import strategies as st

from headspan.io.crc32c import combined


@given(first=st.binary(max_size=300), second=st.binary(max_size=300), zeros=st.integers(0, 1 << 20))
def test_the_combined_checksum_is_that_of_the_joined_bytes(first: bytes, second: bytes, zeros: int) -> None:
    second += bytes(zeros)
    found = combined(google_crc32c.value(first), google_crc32c.value(second), len(second))
    assert found == google_crc32c.value(first + second)
