"""A second writer is refused as long as the first one lives, and no longer."""

import subprocess
import sys
from pathlib import Path

import pytest

from gift_shared.errors import ConfigError
from gift_shared.locks import only_writer

HOLD = "import sys; from pathlib import Path; from gift_shared.locks import only_writer\nwith only_writer(Path(sys.argv[1]), 'x'):"
HOLD += " print('held', flush=True); sys.stdin.read()"


def test_a_folder_that_is_being_written_is_refused_until_its_writer_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    message = r"^Run folder r is being written by another process. Wait for it, or choose another --out.$"
    with pytest.raises(ConfigError, match=message), only_writer(tmp_path / ".lock", "Run folder r"):
        pass
    holder.kill()
    holder.communicate()
    with only_writer(tmp_path / ".lock", "Run folder r"):
        pass


def test_the_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with only_writer(tmp_path / ".lock", "x"):
            pass
    code = "import sys; from pathlib import Path; from gift_shared.locks import only_writer\nwith only_writer(Path(sys.argv[1]), 'x'): pass"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / ".lock")], check=True)
