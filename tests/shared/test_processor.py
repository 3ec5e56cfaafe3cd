"""What is read of a processor: its name, and whether it multiplies faster through oneDNN."""

from pathlib import Path

import pytest

from gift_shared.processor import favours_onednn, processor_name

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


def test_a_processor_is_named_as_its_maker_calls_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9575F 64-Core Processor \n" + WIDE)
    assert processor_name(tmp_path / "cpuinfo") == "AMD EPYC 9575F 64-Core Processor"
    assert processor_name(tmp_path / "none")
