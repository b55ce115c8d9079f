# Work on many small files of this machine, as the orders that come in say, until the input ends.
#
# An order and its answer are frames: the lengths of a JSON text and of the bytes behind it (two big-endian 32-bit
# numbers), the text, the bytes. The directory of an order is walked to from the root, each one opened in the one before
# it and no link followed: what is done is done there, whatever others rename meanwhile. An answer has an entry for each
# name: what was asked for, or the errno of what went wrong. Python 3.6 and later; the system's, without any package.
import errno
import hashlib
import json
import os
import stat
import struct
import sys

HEAD = struct.Struct(">II")
PLACE = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_NOFOLLOW | os.O_CLOEXEC
EXACT = sys.argv[1:] == ["exact"]
NOT_KEPT = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def walk(path):
    here = os.open("/", PLACE)
    for name in path.encode("utf-8", "surrogateescape").split(b"/"):
        if name:
            try:
                below = os.open(name, PLACE, dir_fd=here)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    kind = os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
                    if stat.S_ISLNK(kind) or stat.S_ISDIR(kind):
                        error.errno = errno.ELOOP
                raise
            finally:
                os.close(here)
            here = below
    return here


def names(order):
    # whatever the locale here
    return [name.encode("utf-8", "surrogateescape") for name in order["names"]]


def facts(found):
    seconds = found.st_mtime_ns // 10**9
    if EXACT:
        more = [found.st_dev, found.st_ino, found.st_nlink, found.st_mtime_ns, found.st_ctime_ns]
        return [found.st_mode, found.st_size, seconds] + more
    # as an SFTP server tells them: whole seconds, in 32 bits
    return [found.st_mode, found.st_size, seconds & 0xFFFFFFFF]


def look(where, order, _):
    def one(name):
        return facts(os.stat(name, dir_fd=where, follow_symlinks=False))

    return [attempt(one, name) for name in names(order)]


def opened(where, name):
    return os.open(name, os.O_RDONLY | os.O_NONBLOCK | FILE, dir_fd=where)


def read(where, order, given):
    def one(name):
        handle = opened(where, name)
        try:
            found, data = os.fstat(handle), b""
            while stat.S_ISREG(found.st_mode) and found.st_size <= order["most"]:
                piece = os.read(handle, found.st_size + 1 - len(data))
                data += piece
                if not piece or len(data) >= found.st_size:
                    break
            given.append(data)
            return facts(found) + [len(data)]
        finally:
            os.close(handle)

    return [attempt(one, name) for name in names(order)]


def digest(where, order, _):
    def one(name):
        handle, taken = opened(where, name), hashlib.sha256()
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "")
            piece = os.read(handle, order["likely"])
            while piece:
                taken.update(piece)
                piece = os.read(handle, order["likely"])
            return taken.hexdigest()
        finally:
            os.close(handle)

    return [attempt(one, name) for name in names(order)]


def write(where, order, data):
    def one(name, mode, mtime, piece):
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE, 0o600, dir_fd=where)
        try:
            try:
                while piece:
                    piece = piece[os.write(handle, piece) :]
                for act, value in ((os.fchmod, mode), (os.utime, (mtime, mtime))):
                    try:
                        act(handle, value)
                    except OSError as error:
                        if error.errno not in NOT_KEPT:
                            raise
                return facts(os.fstat(handle))
            finally:
                os.close(handle)
        except OSError:
            os.unlink(name, dir_fd=where)
            raise

    answer, at = [], 0
    for name, (mode, mtime, size) in zip(names(order), order["files"]):
        answer.append(attempt(one, name, mode, mtime, data[at : at + size]))
        at += size
    return answer


def rename(where, order, _):
    def one(old, new):
        if order["overwrite"]:
            os.rename(old, new, src_dir_fd=where, dst_dir_fd=to)
            return 0
        os.link(old, new, src_dir_fd=where, dst_dir_fd=to, follow_symlinks=False)
        try:
            os.unlink(old, dir_fd=where)
        except FileNotFoundError:
            pass
        except OSError:
            # left there, the new name would be in the way of the next try; the last name is never taken
            if os.path.samestat(
                os.stat(old, dir_fd=where, follow_symlinks=False), os.stat(new, dir_fd=to, follow_symlinks=False)
            ):
                os.unlink(new, dir_fd=to)
            raise
        return 0

    to = walk(order["to"])
    try:
        return [attempt(one, old, new) for old, new in zip(names(order), names({"names": order["new"]}))]
    finally:
        os.close(to)


def remove(where, order, _):
    def one(name):
        os.unlink(name, dir_fd=where)
        return 0

    return [attempt(one, name) for name in names(order)]


def sync(_, order, *__):
    # each file system once
    import ctypes

    synced = set()
    for path in order["directories"]:
        where = walk(path)
        try:
            device = os.fstat(where).st_dev
            if device in synced:
                continue
            synced.add(device)
            handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=where)
        finally:
            os.close(where)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(handle):
                return ctypes.get_errno()
        finally:
            os.close(handle)
    return 0


def survey(_, order, *__):
    # what directories below a base directory are in truth (made, if that is wanted), and what has some names there
    base = os.path.realpath(order["base"].encode("utf-8", "surrogateescape"))
    os.stat(base)

    def one(place, wanted):
        missing = []
        while True:
            # the nearest one that exists
            try:
                os.stat(os.path.join(base, place))
                break
            except OSError as error:
                if not place or error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    return ["", "", error.errno, [], None]
                place, _, name = place.rpartition(b"/")
                missing.insert(0, name)
        real = os.path.realpath(os.path.join(base, place))
        told = [text(real), text(b"/".join(missing))]
        if real != base and not real.startswith(base.rstrip(b"/") + b"/"):
            return told + ["out", [], None]
        try:
            return told + entered(real, missing, wanted)
        except OSError as error:
            return told + [error.errno or errno.EIO, [], None]

    def entered(real, missing, wanted):
        where = walk(text(real))
        try:
            if missing and is_link(where, missing[0]):
                return ["dangling", [], None]
            if missing and not order["make"]:
                return [0, [errno.ENOENT] * len(wanted), None]
            for name in missing:
                above, where = where, made(where, name)
                os.close(above)
            return [0, look(where, {"names": wanted}, None), free(where)]
        finally:
            os.close(where)

    def made(above, name):
        try:
            os.mkdir(name, dir_fd=above)
        except FileExistsError:
            pass
        return os.open(name, PLACE, dir_fd=above)

    places = [place.encode("utf-8", "surrogateescape") for place in order["places"]]
    return [text(base), [one(place, wanted) for place, wanted in zip(places, order["names"])]]


def text(raw):
    return raw.decode("utf-8", "surrogateescape")


def is_link(where, name):
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=where, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def free(where):
    try:
        handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=where)
    except OSError:
        return None
    try:
        found = os.fstatvfs(handle)
        return found.f_bavail * found.f_frsize if found.f_blocks and found.f_frsize else None
    except OSError:
        return None
    finally:
        os.close(handle)


def attempt(act, *what):
    try:
        return act(*what)
    except OSError as error:
        return error.errno or errno.EIO


def main():
    orders, answers = sys.stdin.buffer, sys.stdout.buffer
    verbs = {act.__name__: act for act in (look, read, digest, write, rename, remove, sync, survey)}
    answers.write(b"dm-many\n")
    while True:
        answers.flush()
        head = orders.read(HEAD.size)
        if len(head) < HEAD.size:
            return
        text, size = HEAD.unpack(head)
        order = json.loads(orders.read(text).decode("ascii"))
        data, given = memoryview(orders.read(size)), []
        try:
            where = walk(order["in"])
            try:
                answer = verbs[order["do"]](where, order, data if size else given)
            finally:
                os.close(where)
        except (OSError, AttributeError) as error:
            answer = getattr(error, "errno", None) or errno.ENOSYS
        told = json.dumps(answer).encode("ascii")
        answers.write(HEAD.pack(len(told), sum(map(len, given))) + told)
        answers.writelines(given)


if __name__ == "__main__":
    main()
