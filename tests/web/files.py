"""Changes files of an export by Debian's libnfs: files.py HOST PORT EXPORT < STEPS

STEPS is a list in JSON: {"mkdir": PATH}, {"write": PATH, "data": BYTES}, {"link": PATH, "to": TARGET},
{"remove": PATH}, {"read": PATH}. Paths and bytes are base64, because names need not be UTF-8. What was
read is printed, one line of base64 each. Every write is in the bucket before the next step.
"""

import base64
import ctypes as c
import errno
import json
import os
import sys
import time

host, port, export = sys.argv[1:4]
lib = c.CDLL("libnfs.so.13")
HANDLE = c.c_void_p
PIECE = 256 << 10


class Url(c.Structure):
    _fields_ = [("server", c.c_char_p), ("path", c.c_char_p), ("file", c.c_char_p)]


def declare(name, result, *arguments):
    function = getattr(lib, name)
    function.restype, function.argtypes = result, arguments


declare("nfs_init_context", HANDLE)
declare("nfs_get_error", c.c_char_p, HANDLE)
declare("nfs_parse_url_dir", c.POINTER(Url), HANDLE, c.c_char_p)
for name, *arguments in [
    ("nfs_mount", c.c_char_p, c.c_char_p),
    ("nfs_mkdir2", c.c_char_p, c.c_int),
    ("nfs_unlink", c.c_char_p),
    ("nfs_symlink", c.c_char_p, c.c_char_p),
    ("nfs_open2", c.c_char_p, c.c_int, c.c_int, c.POINTER(HANDLE)),
    ("nfs_close", HANDLE),
    ("nfs_fsync", HANDLE),
    ("nfs_pwrite", HANDLE, c.c_uint64, c.c_uint64, c.c_char_p),
    ("nfs_pread", HANDLE, c.c_uint64, c.c_uint64, c.c_char_p),
]:
    declare(name, c.c_int, HANDLE, *arguments)

context = lib.nfs_init_context()
url = lib.nfs_parse_url_dir(context, f"nfs://{host}{export}?nfsport={port}&mountport={port}&version=3".encode())


# The server asks clients to repeat a call later (NFS3ERR_JUKEBOX) while it cannot answer it, for
# example when a busy machine has let its lease expire. The kernel's client does; libnfs leaves it to us.
AGAIN_SECONDS = 30


def call(name, *arguments):
    end = time.monotonic() + AGAIN_SECONDS
    while True:
        result = getattr(lib, name)(context, *arguments)
        if result >= 0:
            return result
        if result != -errno.EAGAIN or time.monotonic() > end:
            raise OSError(-result, f"{name}: {lib.nfs_get_error(context).decode(errors='replace')}")
        time.sleep(0.2)


def opened(path, flags):
    handle = HANDLE()
    call("nfs_open2", path, flags, 0o644, c.byref(handle))
    return handle


def write(path, data):
    handle = opened(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    at = 0
    while at < len(data):
        piece = data[at:at + PIECE]
        at += call("nfs_pwrite", handle, at, len(piece), piece)
    call("nfs_fsync", handle)
    call("nfs_close", handle)


def read(path):
    handle, data = opened(path, os.O_RDONLY), b""
    while True:
        piece = c.create_string_buffer(PIECE)
        count = call("nfs_pread", handle, len(data), PIECE, piece)
        if count == 0:
            break
        data += piece.raw[:count]
    call("nfs_close", handle)
    return data


call("nfs_mount", url.contents.server, url.contents.path)
for step in json.load(sys.stdin):
    step = {name: base64.b64decode(value) for name, value in step.items()}
    if "mkdir" in step:
        call("nfs_mkdir2", step["mkdir"], 0o755)
    elif "write" in step:
        write(step["write"], step["data"])
    elif "link" in step:
        call("nfs_symlink", step["to"], step["link"])
    elif "remove" in step:
        call("nfs_unlink", step["remove"])
    elif "read" in step:
        print(base64.b64encode(read(step["read"])).decode())
