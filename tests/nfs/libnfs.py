"""Debian's libnfs (libnfs13, by ctypes) against an NFSv3 server: libnfs.py HOST PORT EXPORT.

A client that is not ours: each step below is a case. Everything happens in one directory, removed
at the end.
"""

import ctypes as c
import errno
import os
import sys

host, port, export = sys.argv[1:4]
lib = c.CDLL("libnfs.so.13")
NFS, FH = c.c_void_p, c.c_void_p


class Stat(c.Structure):
    _fields_ = [(name, c.c_uint64) for name in (
        "dev ino mode nlink uid gid rdev size blksize blocks atime mtime ctime "
        "atime_nsec mtime_nsec ctime_nsec used").split()]


class Timeval(c.Structure):
    _fields_ = [("sec", c.c_long), ("usec", c.c_long)]


class Dirent(c.Structure):
    pass


Dirent._fields_ = [("next", c.POINTER(Dirent)), ("name", c.c_char_p), ("inode", c.c_uint64),
                    ("type", c.c_uint32),
                   ("mode", c.c_uint32), ("size", c.c_uint64)]


class Url(c.Structure):
    _fields_ = [("server", c.c_char_p), ("path", c.c_char_p), ("file", c.c_char_p)]


def declare(name, result, *arguments):
    function = getattr(lib, name)
    function.restype, function.argtypes = result, arguments


declare("nfs_init_context", NFS)
declare("nfs_destroy_context", None, NFS)
declare("nfs_get_error", c.c_char_p, NFS)
declare("nfs_parse_url_dir", c.POINTER(Url), NFS, c.c_char_p)
declare("nfs_mount", c.c_int, NFS, c.c_char_p, c.c_char_p)
declare("nfs_get_readmax", c.c_uint64, NFS)
declare("nfs_get_writemax", c.c_uint64, NFS)
for name, *arguments in [
    ("nfs_stat64", c.c_char_p, c.POINTER(Stat)), ("nfs_lstat64", c.c_char_p, c.POINTER(Stat)),
    ("nfs_mkdir2", c.c_char_p, c.c_int), ("nfs_rmdir", c.c_char_p), ("nfs_unlink", c.c_char_p),
    ("nfs_rename", c.c_char_p, c.c_char_p), ("nfs_link", c.c_char_p, c.c_char_p),
    ("nfs_symlink", c.c_char_p, c.c_char_p),
    ("nfs_readlink", c.c_char_p, c.c_char_p, c.c_int),
    ("nfs_creat", c.c_char_p, c.c_int, c.POINTER(FH)),
    ("nfs_open", c.c_char_p, c.c_int, c.POINTER(FH)), ("nfs_close", FH), ("nfs_fsync", FH),
    ("nfs_pwrite", FH, c.c_uint64, c.c_uint64, c.c_char_p),
    ("nfs_pread", FH, c.c_uint64, c.c_uint64, c.c_char_p),
    ("nfs_truncate", c.c_char_p, c.c_uint64), ("nfs_chmod", c.c_char_p, c.c_int),
    ("nfs_chown", c.c_char_p, c.c_int, c.c_int),
    ("nfs_utimes", c.c_char_p, c.POINTER(Timeval)), ("nfs_access", c.c_char_p, c.c_int),
    ("nfs_mknod", c.c_char_p, c.c_int, c.c_int), ("nfs_opendir", c.c_char_p, c.POINTER(c.c_void_p)),
    ("nfs_statvfs", c.c_char_p, c.c_void_p),
]:
    declare(name, c.c_int, NFS, *arguments)
declare("nfs_readdir", c.POINTER(Dirent), NFS, c.c_void_p)
declare("nfs_closedir", None, NFS, c.c_void_p)


class Nfs:
    """A mount; every method is the libnfs function of its name, failing with OSError."""

    def __init__(self):
        self.context = lib.nfs_init_context()
        url = f"nfs://{host}{export}?nfsport={port}&mountport={port}&version=3".encode()
        parsed = lib.nfs_parse_url_dir(self.context, url)
        if not parsed:
            raise OSError(errno.EINVAL, lib.nfs_get_error(self.context).decode())
        self.mount(parsed.contents.server, parsed.contents.path)

    def __getattr__(self, name):
        function = getattr(lib, "nfs_" + name)

        def call(*arguments):
            result = function(self.context, *arguments)
            if result < 0:
                why = lib.nfs_get_error(self.context).decode(errors="replace")
                raise OSError(-result, f"{name}: {why}")
            return result

        return call

    def stat(self, path, link=False):
        found = Stat()
        (self.lstat64 if link else self.stat64)(path, c.byref(found))
        return found

    def file(self, path, flags=None):
        handle = FH()
        if flags is None:
            self.creat(path, 0o644, c.byref(handle))
        else:
            self.open(path, flags, c.byref(handle))
        return handle

    def names(self, path):
        handle = c.c_void_p()
        self.opendir(path, c.byref(handle))
        names = []
        while entry := lib.nfs_readdir(self.context, handle):
            names.append(entry.contents.name)
        lib.nfs_closedir(self.context, handle)
        return names

    def read_all(self, path):
        handle, data = self.file(path, os.O_RDONLY), b""
        buffer = c.create_string_buffer(1 << 20)
        while count := self.pread(handle, len(data), len(buffer), buffer):
            data += buffer.raw[:count]
        self.close(handle)
        return data


cases = []


def case(function):
    cases.append(function)
    return function


def fails(code, function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        assert error.errno == code, f"errno {error.errno} instead of {code}: {error}"
    else:
        raise AssertionError(f"errno {code} expected")


@case
def limits(nfs):
    assert lib.nfs_get_readmax(nfs.context) == 1 << 20
    assert lib.nfs_get_writemax(nfs.context) == 1 << 20


@case
def data_comes_back(nfs):
    data = os.urandom(3_500_001)
    handle, at = nfs.file(b"/t/data"), 0
    while at < len(data):
        at += nfs.pwrite(handle, at, min(700_000, len(data) - at), data[at:at + 700_000])
    nfs.fsync(handle)
    nfs.close(handle)
    assert nfs.read_all(b"/t/data") == data and Nfs().read_all(b"/t/data") == data
    assert nfs.stat(b"/t/data").size == len(data)


@case
def holes_and_truncates(nfs):
    handle = nfs.file(b"/t/sparse")
    nfs.pwrite(handle, 10_000_000, 3, b"end")
    nfs.close(handle)
    assert nfs.read_all(b"/t/sparse") == bytes(10_000_000) + b"end"
    assert nfs.stat(b"/t/sparse").used < 1_000_000
    nfs.truncate(b"/t/sparse", 5)
    nfs.truncate(b"/t/sparse", 20)
    assert nfs.read_all(b"/t/sparse") == bytes(20)


@case
def directories(nfs):
    nfs.mkdir2(b"/t/dir", 0o750)
    assert nfs.stat(b"/t/dir").mode & 0o7777 == 0o750 and nfs.stat(b"/t/dir").nlink == 2
    fails(errno.EEXIST, nfs.mkdir2, b"/t/dir", 0o755)
    nfs.close(nfs.file(b"/t/dir/file"))
    fails(errno.ENOTEMPTY, nfs.rmdir, b"/t/dir")
    fails(errno.ENOENT, nfs.stat, b"/t/dir/other")
    fails(errno.ENOTDIR, nfs.rmdir, b"/t/dir/file")
    nfs.unlink(b"/t/dir/file")
    nfs.rmdir(b"/t/dir")


@case
def a_thousand_names(nfs):
    nfs.mkdir2(b"/t/many", 0o755)
    names = {b"n-%04d-" % i + b"\xc3\xa4" * (i % 9) for i in range(1000)}
    for name in names:
        nfs.close(nfs.file(b"/t/many/" + name))
    found = nfs.names(b"/t/many")
    assert len(found) == len(set(found)) == 1002 and set(found) == names | {b".", b".."}


@case
def names_of_every_length(nfs):
    longest = b"x" * 255
    nfs.close(nfs.file(b"/t/" + longest))
    assert nfs.stat(b"/t/" + longest).size == 0
    fails(errno.ENAMETOOLONG, nfs.file, b"/t/" + b"x" * 256)
    nfs.unlink(b"/t/" + longest)


@case
def links(nfs):
    nfs.close(nfs.file(b"/t/first"))
    nfs.link(b"/t/first", b"/t/second")
    assert nfs.stat(b"/t/first").ino == nfs.stat(b"/t/second").ino
    assert nfs.stat(b"/t/first").nlink == 2
    nfs.unlink(b"/t/first")
    assert nfs.stat(b"/t/second").nlink == 1
    nfs.symlink(b"second", b"/t/soft")
    buffer = c.create_string_buffer(100)
    nfs.readlink(b"/t/soft", buffer, len(buffer))
    assert buffer.value == b"second" and nfs.stat(b"/t/soft", link=True).mode & 0o170000 == 0o120000
    assert nfs.stat(b"/t/soft").ino == nfs.stat(b"/t/second").ino


@case
def renames(nfs):
    for name in (b"/t/a", b"/t/b"):
        handle = nfs.file(name)
        nfs.pwrite(handle, 0, 4, name)
        nfs.close(handle)
    nfs.rename(b"/t/a", b"/t/b")
    assert nfs.read_all(b"/t/b") == b"/t/a"
    fails(errno.ENOENT, nfs.stat, b"/t/a")
    nfs.mkdir2(b"/t/up", 0o755)
    nfs.mkdir2(b"/t/up/down", 0o755)
    fails(errno.EINVAL, nfs.rename, b"/t/up", b"/t/up/down/up")
    nfs.rename(b"/t/up/down", b"/t/down")
    assert nfs.stat(b"/t/up").nlink == 2


@case
def attributes(nfs):
    nfs.close(nfs.file(b"/t/attr"))
    before = nfs.stat(b"/t/attr")
    nfs.chmod(b"/t/attr", 0o4711)
    nfs.chown(b"/t/attr", 12, 34)
    times = Timeval(1_000_000_000, 250_000), Timeval(1_100_000_000, 750_000)
    nfs.utimes(b"/t/attr", (Timeval * 2)(*times))
    found = nfs.stat(b"/t/attr")
    assert (found.uid, found.gid) == (12, 34) and found.mode & 0o777 == 0o711
    assert (found.atime, found.mtime) == (1_000_000_000, 1_100_000_000)
    assert found.mtime_nsec == 750_000_000
    assert (found.ctime, found.ctime_nsec) > (before.ctime, before.ctime_nsec)


@case
def special_files(nfs):
    nfs.mknod(b"/t/fifo", 0o010644, 0)
    assert nfs.stat(b"/t/fifo").mode & 0o170000 == 0o010000


@case
def space(nfs):
    numbers = (c.c_ulong * 64)()
    nfs.statvfs(b"/t", c.cast(numbers, c.c_void_p))
    _, fragment, blocks, free = numbers[0], numbers[1], numbers[2], numbers[3]
    assert fragment * blocks == 1 << 30 and 0 < free < blocks, (fragment, blocks, free)


@case
def the_quota_is_enforced(nfs):
    handle, block = nfs.file(b"/t/full"), os.urandom(1 << 20)

    def fill():
        for mib in range(1100):
            nfs.pwrite(handle, mib << 20, len(block), mib.to_bytes(8, "big") + block[8:])

    try:
        fill()
    except OSError as error:
        # This libnfs puts the server's error into the text, and its own into the number.
        assert error.errno == errno.ENOSPC or "\x1c" in str(error), error
    else:
        raise AssertionError("1100 MiB fit into 1 GiB")
    nfs.close(handle)
    nfs.unlink(b"/t/full")
    again = nfs.file(b"/t/again")
    assert nfs.pwrite(again, 0, len(block), block) == len(block)
    nfs.fsync(again)
    nfs.close(again)


def clear(nfs, path):
    for name in nfs.names(path):
        if name in (b".", b".."):
            continue
        entry = path + b"/" + name
        if nfs.stat(entry, link=True).mode & 0o170000 == 0o040000:
            clear(nfs, entry)
        else:
            nfs.unlink(entry)
    nfs.rmdir(path)


mount = Nfs()
mount.mkdir2(b"/t", 0o755)
failed = 0
for function in cases:
    try:
        function(mount)
        print("ok", function.__name__)
    except (AssertionError, OSError) as error:
        failed += 1
        print("FAILED", function.__name__, repr(error))
clear(mount, b"/t")
print(f"{len(cases) - failed} passed, {failed} failed")
sys.exit(failed > 0)
