"""Which processors multiply faster through oneDNN."""

from pathlib import Path

import pytest

from gift_shared.processor import favours_onednn

AMD, INTEL = "vendor_id\t: AuthenticAMD\n", "vendor_id\t: GenuineIntel\n"
WIDE, NARROW = "flags\t\t: fpu sse2 avx2 avx512f avx512dq\n", "flags\t\t: fpu sse2 avx2 fma\n"


@pytest.mark.parametrize(
    ("description", "is_favoured"),
    [(AMD + WIDE, True), (AMD + NARROW, False), (INTEL + WIDE, False), ("CPU implementer : 0x41\n", False), (None, False)],
)
def test_amds_with_wide_registers_favour_onednn(tmp_path: Path, description: str | None, is_favoured: bool) -> None:
    path = tmp_path / "cpuinfo"
    if description is not None:
        path.write_text(description)
    assert favours_onednn(path) is is_favoured
