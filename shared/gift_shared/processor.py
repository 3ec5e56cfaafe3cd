"""The machine's processor: its name, and which of the two libraries for matrix products that torch ships suits it. No torch here."""

import platform
import re
from functools import cache
from pathlib import Path

DESCRIPTION = Path("/proc/cpuinfo")  # Linux's
FEWEST_PRODUCTS = 2**21  # multiplications of one matrix product; with fewer, oneDNN's longer way to it takes what it gains


@cache
def favours_onednn(description: Path = DESCRIPTION) -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL, which torch asks on every x86 processor.

    On AMD's, MKL (2024.2) keeps to 256 bits where they have AVX-512: 110 GFLOP/s on a core of an EPYC (Zen 5), oneDNN 240. On Intel's
    the two are alike, and so are they without AVX-512. A matter of the processor alone, so that a machine always adds up in one order.
    """
    text = _read(description)
    return bool(re.search(r"^vendor_id\s*:\s*AuthenticAMD$", text, re.MULTILINE)) and " avx512f " in text


def processor_name(description: Path = DESCRIPTION) -> str:
    """As its maker calls it; as Python knows it where the system does not tell."""
    named = re.search(r"^model name\s*:\s*(\S.*)$", _read(description), re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _read(description: Path) -> str:
    try:
        return description.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
