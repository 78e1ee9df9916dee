"""Errors of disks and file systems in one line, even if another library dropped the error number."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

FULL = re.compile(r"No space left|StorageFull|PytorchStreamWriter failed")
NUMBER = re.compile(r"\((?:os error|errno) (\d+)\)|\[[Ee]rrno (\d+)\]")  # formats of Rust, Arrow and Python
OWN = (".tmp", ".lock", ".log")  # files that this package writes in place
AGAIN = "and run the same command again; finished work is kept"
WORDS = {
    errno.ENOSPC: f"the disk is full{{where}}: free some space {AGAIN}",
    errno.EDQUOT: f"the disk quota is used up{{where}}: free some space {AGAIN}",
    errno.EFBIG: f"a file is too large for its disk or for `ulimit -f`{{where}}: raise the limit {AGAIN}",
    errno.EIO: f"the disk failed (input/output error){{where}}: check it, {AGAIN}",
    errno.ESTALE: f"the network file system lost a file{{where}}: wait until it answers, {AGAIN}",
    errno.EMFILE: f"too many open files{{where}}: raise `ulimit -n` {AGAIN}",
    errno.ENFILE: f"this machine has too many open files{{where}}: wait, {AGAIN}",
    errno.ENAMETOOLONG: "a path is too long{where}: choose a shorter outputs= or name=",
    errno.ELOOP: "a link points to itself{where}: delete it",
    errno.EISDIR: "expected a file, found a folder{where}: move it away",
    errno.EEXIST: "expected a folder, found a file{where}: move it away",
}
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def explain_disk_error(error: BaseException) -> str | None:
    """Return the failure of a disk in one line, with the file if known and a remedy; None for any other error."""
    for each in error_chain(error):
        number, path = error_number(each), error_path(each)
        where = f" ({path})" if path else ""
        if number in WORDS:
            return WORDS[number].format(where=where)
        if number == errno.ENOENT and path and path.is_symlink():
            return f"a link is broken{where}: delete it"
        if number in REFUSED:
            if path and number != errno.EROFS and is_unreadable(path):
                return f"cannot read{where}: {os.strerror(number)}. Change its permissions, or choose another file"
            return f"cannot write{where}: {os.strerror(number)}. Choose another folder with outputs=..."
    return None


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def error_number(error: BaseException) -> int | None:
    """Return the errno of an error; libraries in C++ or Rust have it, or its meaning, in their message only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)[:10_000]
    if FULL.search(text):
        return errno.ENOSPC
    found = NUMBER.search(text)
    return int(found[1] or found[2]) if found else None


def error_path(error: BaseException) -> Path | None:
    """Return the file that an error names."""
    name: object = getattr(error, "filename", None)
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) and name else None


def is_unreadable(path: Path) -> bool:
    """Return whether a file exists and reading it failed: this package writes temporary files, then renames them."""
    try:
        return path.is_file() and not path.name.endswith(OWN)
    except OSError:  # access to its folder was denied
        return True
