"""The commit that is told is that of our own checkout, and of no other that the code happens to lie in."""

import shutil
import subprocess
from importlib.util import module_from_spec, spec_from_file_location

import gift_shared.version


def git(folder, *arguments):
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_a_wheel_within_somebodys_checkout_has_no_commit(tmp_path):
    copy = tmp_path / "site-packages/version.py"
    copy.parent.mkdir()
    shutil.copyfile(gift_shared.version.__file__, copy)
    specification = spec_from_file_location("copied_version", copy)
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.git_commit() is None
    git(tmp_path, "init", "-q")
    (tmp_path / "notes.txt").write_text("a project of somebody's")
    git(tmp_path, "add", "notes.txt")
    git(tmp_path, "commit", "-q", "-m", "Notes")
    assert module.git_commit() is None
    git(tmp_path, "add", "site-packages")
    git(tmp_path, "commit", "-q", "-m", "With the code")
    assert module.git_commit() == git(tmp_path, "rev-parse", "HEAD")
    copy.write_text(copy.read_text() + "\n")
    assert module.git_commit() == git(tmp_path, "rev-parse", "HEAD") + "+changes"
