"""A disk error is one line from any library: the file, reading or writing, and what to do."""

import errno
import os

import pytest

from depthcut.runtime import disk, failures

SAYS = {
    errno.ENOSPC: "the disk is full (F): free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up (F): free some space",
    errno.EFBIG: "a file is too large for its disk or for `ulimit -f` (F): raise the limit",
    errno.EIO: "the disk failed (input/output error) (F): check it, and run the same command again",
    errno.ESTALE: "the network file system lost a file (F): wait until it answers",
    errno.EMFILE: "too many open files (F): raise `ulimit -n`",
    errno.ENAMETOOLONG: "a path is too long (F): choose a shorter outputs= or name=",
    errno.ELOOP: "a link points to itself (F): delete it",
    errno.EISDIR: "expected a file, found a folder (F): move it away",
    errno.EEXIST: "expected a folder, found a file (F): move it away",
    errno.EACCES: "cannot write (F): Permission denied. Choose another folder with outputs=...",
    errno.EROFS: "cannot write (F): Read-only file system. Choose another folder with outputs=...",
    errno.ENOTDIR: "cannot write (F): Not a directory. Choose another folder with outputs=...",
}


@pytest.mark.parametrize("number", SAYS, ids=errno.errorcode.get)
def test_system_errors_are_recognised_through_rust_and_arrow(number):
    assert failures.error_line(OSError(number, os.strerror(number), "F")).startswith(SAYS[number])
    words = f"{os.strerror(number)} (os error {number})"
    for text in (f"Error while serializing: I/O error: {words}", f"Opening F failed. Detail: [errno {number}] x"):
        assert failures.error_line(RuntimeError(text)).startswith(SAYS[number].replace(" (F)", ""))


def test_cause_of_an_error_counts():
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded", "x.arrow")
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error
    except RuntimeError as error:
        assert failures.error_line(error).startswith("the disk quota is used up (x.arrow)")


def test_unreadable_file_is_reported_as_such(tmp_path):
    (tmp_path / "corpus.txt").write_text("text")
    refused = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "corpus.txt"))
    assert failures.error_line(refused).startswith(
        f"cannot read ({tmp_path}/corpus.txt): Permission denied. Change its"
    )


def test_disk_error_through_safetensors(tmp_path):
    """A file that grows beyond RLIMIT_FSIZE, written by Rust."""
    import resource
    import signal

    import numpy as np
    from safetensors.numpy import save_file

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(Exception, match="os error 27") as caught:
            save_file({"x": np.zeros(100_000)}, tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert failures.error_line(caught.value).startswith("a file is too large")


def test_other_errors_keep_their_traceback():
    for error in (
        FileNotFoundError(errno.ENOENT, "x", "F"),
        RuntimeError("shape mismatch"),
        ValueError("bad (os error)"),
    ):
        assert disk.explain_disk_error(error) is None
