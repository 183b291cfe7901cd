"""``image:PATH``: a raw, sparse file; ``PATH.partial`` until it is whole.

Direct I/O where the file system can, so that a copy does not push everything else out of
the page cache; otherwise through the page cache (tmpfs, some overlay and network file
systems).  The session says which: `ImageSession.direct`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar, Final

from dmcopy.core.extent import Extent
from dmcopy.destinations.base import Can, Destination, Session, Surroundings, must_fit
from dmcopy.errors import DestinationFailed, Refused, UsageError
from dmcopy.kernel.blkdev import pread_full, punch_hole, pwrite_full, rename_new
from dmcopy.kernel.whole_file import sync_directory
from dmcopy.units import MIB, Bytes, Sectors, format_size, to_bytes

log = logging.getLogger(__name__)

# What O_DIRECT needs at most: no file system asks for more than a page, and a device of
# 512-byte sectors has an image whose size need not be a multiple of it.
ALIGNMENT: Final = Bytes(max(4096, mmap.PAGESIZE))

_SUFFIX: Final = ".partial"
_NO_DIRECT: Final = (errno.EINVAL, errno.EOPNOTSUPP)
_NO_HOLES: Final = (errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True)
class ImageDestination(Destination):
    """A file, named by an absolute *path*."""

    kind: ClassVar[str] = "image"
    can: ClassVar[Can] = Can.RANDOM | Can.ZERO | Can.REREAD

    path: str

    @classmethod
    def parse(cls, rest: str) -> ImageDestination:
        """Take a path; it is made absolute, for the worker may stand elsewhere."""
        if not rest:
            raise UsageError("image: needs the path of a file, as in image:/srv/db.img")
        if rest.endswith("/"):
            raise UsageError(f"image:{rest} is a directory; name a file in it")
        return cls(os.path.abspath(rest))

    def __str__(self) -> str:
        """Give ``image:PATH``."""
        return f"{self.kind}:{self.path}"

    @property
    def partial(self) -> str:
        """The name of the file until it is complete."""
        return self.path + _SUFFIX

    @property
    def folder(self) -> str:
        """The directory that holds the file."""
        return os.path.dirname(self.path)

    def check(self, length: Sectors, around: Surroundings) -> None:
        """Refuse to overwrite anything, and to write onto what is being copied.

        Too little free space is a warning only: zeroes become holes, so the image may well
        fit, and if it does not the copy fails and the source is as it was.
        """
        self._refuse(around)
        found = os.statvfs(self.folder)
        free, worst = found.f_bavail * found.f_frsize, to_bytes(length)
        if free < worst:
            log.warning(
                "%s has %s free; the image needs up to %s, less where the source is zero",
                self.folder,
                format_size(free),
                format_size(worst),
            )

    def identity(self, around: Surroundings) -> Mapping[str, str | int]:
        """Give the path, and the devices and the inode of the directory."""
        devices = sorted(around.sysfs.devices_of(self.folder))
        return {
            "path": self.path,
            "devices": ",".join(devices),
            "folder_inode": os.stat(self.folder).st_ino,
        }

    @contextmanager
    def open(self, length: Sectors, around: Surroundings) -> Iterator[Session]:
        """Create the partial file, or open that of an earlier session; locked.

        A new one is removed unless the image was completed or kept.
        """
        self._refuse(around)
        new = around.resume is None
        verb, flags = ("create", os.O_CREAT | os.O_EXCL) if new else ("open", os.O_NOFOLLOW)
        file = self.path if self.has_its_name(around.resume) else self.partial
        with self._failing(f"{verb} {file}"):
            fd = os.open(file, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        session: ImageSession | None = None
        try:
            # tells a partial file that is being written from one that was left behind
            fcntl.flock(fd, fcntl.LOCK_EX)
            if around.resume is None:
                with self._failing(f"give {self.partial} its size of {to_bytes(length)} bytes"):
                    os.ftruncate(fd, to_bytes(length))
                    sync_directory(self.folder)  # the journal is going to count on the file
            else:
                self._refuse_other(fd, length, around.resume)
            with _direct(file) as direct:
                session = ImageSession(self, fd, direct, length)
                yield session
        finally:
            if new and not (session is not None and session.kept):
                self._remove_partial(fd)
            os.close(fd)

    def leftovers(self) -> list[str]:
        """The partial file; ask `is_being_written` before removing it."""
        return [self.partial]

    def segment_alignment(self) -> Bytes:
        """What O_DIRECT needs."""
        return ALIGNMENT

    def _refuse(self, around: Surroundings) -> None:
        sysfs = around.sysfs
        real = os.path.join(os.path.realpath(self.folder), os.path.basename(self.path))
        if real.startswith(f"{sysfs.dev}/"):
            raise Refused(
                f"{self.path} would be a file under {sysfs.dev}, which is memory",
                way_out="name a device that is there, or an image file elsewhere",
            )
        if os.path.isdir(self.path):
            raise Refused(f"{self.path} is a directory", way_out="name a file in it")
        if not os.path.isdir(self.folder):
            raise Refused(f"there is no directory {self.folder}", way_out="make it first")
        if self.has_its_name(around.resume):
            self._refuse_on_source(around)
            return
        if os.path.lexists(self.path):
            raise Refused(f"{self.path} exists", way_out="remove it or choose another name")
        self._refuse_partial(resume=around.resume is not None)
        self._refuse_on_source(around)

    def has_its_name(self, mark: Mapping[str, str | int] | None) -> bool:
        """Tell whether the earlier session completed the image, and was killed right after."""
        if mark is None or os.path.lexists(self.partial):
            return False
        with suppress(FileNotFoundError):
            return os.lstat(self.path).st_ino == mark["inode"]
        return False

    def _refuse_partial(self, *, resume: bool) -> None:
        if not os.path.lexists(self.partial):
            if resume:
                raise Refused(
                    f"the unfinished image {self.partial} is gone",
                    way_out="put it back, or cancel the job and begin a new one",
                )
            return
        if is_being_written(self.partial):
            raise Refused(
                f"{self.partial} is being written by another job", way_out="choose another name"
            )
        if resume:
            return
        raise Refused(
            f"{self.partial} was left behind by a copy that was killed",
            way_out="remove it (dmcopy rescue does) or choose another name",
        )

    def _refuse_other(self, fd: int, length: Sectors, mark: Mapping[str, str | int]) -> None:
        """Raise `Refused` unless *fd* is the file that the earlier session made."""
        found = os.fstat(fd)
        if (found.st_ino, found.st_size) != (mark["inode"], to_bytes(length)):
            raise Refused(
                f"{self.partial} is not the file that the job was writing",
                way_out="put that back, or cancel the job and begin a new one",
            )

    def _refuse_on_source(self, around: Surroundings) -> None:
        sysfs = around.sysfs
        under = sysfs.devices_of(self.folder)
        copied = {around.source, *sysfs.above(around.source)}
        if under & (copied | around.spare):
            which = "the source" if under & copied else "a device that this job uses"
            raise Refused(
                f"{self.folder} lies on {which}: writing the image would change what is copied",
                way_out="name a directory on another device",
            )

    def _remove_partial(self, fd: int) -> None:
        # after complete() the name is gone, or belongs to somebody else by now
        with suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(self.partial), os.fstat(fd)):
                os.unlink(self.partial)

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise Refused(
                f"{error.filename} exists", way_out="remove it or choose another name"
            ) from error
        except OSError as error:
            raise DestinationFailed(f"cannot {what}: {error.strerror}") from error


class ImageSession(Session):
    """A file that is being written.

    What `read` guarantees: with direct I/O the bytes come from the device.  Without, the file
    is flushed and the kernel is asked to drop its pages (posix_fadvise(2)), which it does for
    clean pages that nobody has mapped; on a tmpfs memory is the medium.
    """

    def __init__(
        self, image: ImageDestination, fd: int, direct: int | None, length: Sectors
    ) -> None:
        """Write through *fd*, and through *direct*, the same file with O_DIRECT, if there."""
        self._image = image
        self._fd = fd
        self._direct = direct
        self._whole = Extent(Sectors(0), length)
        self._scratch = mmap.mmap(-1, ALIGNMENT)  # page aligned, for the tail
        self.kept = False

    @property
    def mark(self) -> Mapping[str, str | int]:
        """The partial file's inode: another file may have its name by then."""
        return {"inode": os.fstat(self._fd).st_ino}

    def keep(self) -> None:
        """Leave the partial file."""
        self.kept = True

    @property
    def direct(self) -> bool:
        """Whether the page cache is passed by."""
        return self._direct is not None

    def write(self, at: Extent, data: memoryview) -> None:
        """Write the aligned part directly, the rest (at the end of the image) through memory."""
        must_fit(at, self._whole, data)
        with self._failing("write", at):
            done = self._direct_part(at)
            if self._direct is not None and done:
                pwrite_full(self._direct, data[:done], at.offset)
            if done < at.size:
                pwrite_full(self._fd, data[done:], at.offset + done)

    def zero(self, at: Extent) -> None:
        """Make a hole; where the file system has none, write zeroes."""
        must_fit(at, self._whole)
        with self._failing("make a hole in", at):
            try:
                punch_hole(self._fd, at.offset, at.size)
            except OSError as error:
                if error.errno not in _NO_HOLES:
                    raise
                self._write_zeroes(at)

    def flush(self) -> None:
        """Make data and size durable."""
        with self._failing("flush", None):
            os.fsync(self._fd)

    def read(self, at: Extent, into: memoryview) -> None:
        """Read back, past the page cache as far as the class says."""
        must_fit(at, self._whole, into)
        with self._failing("read back", at):
            done = self._direct_part(at)
            if self._direct is None:
                os.fsync(self._fd)
                # whole pages: the kernel keeps one that is named only in part
                start = at.offset - at.offset % ALIGNMENT
                length = -(-(at.offset + at.size - start) // ALIGNMENT) * ALIGNMENT
                os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_DONTNEED)
            elif done:
                pread_full(self._direct, into[:done], at.offset)
            if done < at.size:
                self._read_rest(into[done:], at.offset + done)

    def complete(self) -> None:
        """Flush, and give the image its name, which must still be free; twice is fine."""
        self.flush()
        image = self._image
        try:
            if not image.has_its_name(self.mark):
                rename_new(image.partial, image.path)
            sync_directory(image.folder)
        except OSError as error:
            raise DestinationFailed(
                f"cannot rename {image.partial} to {image.path}: {error.strerror}"
            ) from error

    def _direct_part(self, at: Extent) -> int:
        """How many bytes from the start of *at* can go directly."""
        if self._direct is None or at.offset % ALIGNMENT:
            return 0
        return at.size - at.size % ALIGNMENT

    def _read_rest(self, into: memoryview, offset: int) -> None:
        if self._direct is None or offset % ALIGNMENT or len(into) > ALIGNMENT:
            pread_full(self._fd, into, offset)
            return
        # a whole block over the end of the file comes back short; the kernel has written
        # the cached pages of the range out before (mm/filemap.c:kiocb_write_and_wait)
        got = os.preadv(self._direct, [self._scratch], offset)
        if got < len(into):
            raise OSError(errno.EIO, f"end of file at {offset + got}")
        into[:] = memoryview(self._scratch)[: len(into)]

    def _write_zeroes(self, at: Extent) -> None:
        """Write zeroes, but not over a hole: a file system may have holes and no way back."""
        try:
            if os.lseek(self._fd, at.offset, os.SEEK_DATA) >= at.offset + at.size:
                return
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end
                return
        zeroes = memoryview(bytes(min(at.size, MIB)))
        for start in range(at.offset, at.offset + at.size, MIB):
            pwrite_full(self._fd, zeroes[: at.offset + at.size - start], start)

    @contextmanager
    def _failing(self, verb: str, at: Extent | None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f" at byte {at.offset}" if at is not None else ""
            full = ""
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                full = f"; make room in {self._image.folder} or name another destination"
            raise DestinationFailed(
                f"cannot {verb} {self._image.partial}{where}: {error.strerror}{full}"
            ) from error


def is_being_written(partial: str) -> bool:
    """Tell whether a living job holds this partial file."""
    try:
        fd = os.open(partial, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def _direct(path: str) -> Iterator[int | None]:
    """Open *path* once more with O_DIRECT and try it; None where that does not work."""
    fd = -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _NO_DIRECT:
            raise DestinationFailed(f"cannot open {path}: {error.strerror}") from error
    try:
        yield fd if fd >= 0 and _works(fd) else None
    finally:
        if fd >= 0:
            os.close(fd)


def _works(fd: int) -> bool:
    # some overlay and network file systems take the flag and refuse the I/O
    with mmap.mmap(-1, ALIGNMENT) as page:
        try:
            os.preadv(fd, [page], 0)
        except OSError:
            return False
    return True
