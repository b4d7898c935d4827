"""An object store as a place, through fsspec: files go whole, and come back into a local cache."""

import errno
import os
import re
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from blake3 import blake3

from forethought.errors import MissingExtraError, StorePathError
from forethought.store.copies import USED, copies_in, drop_unused, forget_copy
from forethought.store.files import TEMPORARY, sweep
from forethought.store.place import MARKER, Stamp

# Only what shows an object whole or not at all, whatever happens to its writer; with the driver that fsspec needs.
DRIVERS: Mapping[str, str | None] = {"s3": "s3fs", "gs": "gcsfs", "memory": None}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(.*)\Z", re.DOTALL)
_THIS_PROCESS = secrets.token_hex(16)  # a forked child has it too, and a copy of the memory
_PROBE = f"claims/.writable{TEMPORARY}"
_CHANGED = ("LastModified", "mtime", "created")  # as s3fs, gcsfs and the memory say it
# What drivers raise in words of their own, without a number.
_NUMBERS: tuple[tuple[type[Exception], int], ...] = (
    (FileNotFoundError, errno.ENOENT),
    (PermissionError, errno.EACCES),
    (FileExistsError, errno.EEXIST),
    (TimeoutError, errno.ETIMEDOUT),
)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Say whether `path` names something other than a local folder. Path('s3://x') has lost a slash, and is refused."""
    match = _URL.match(os.fspath(path))
    if match and not match[2] and isinstance(path, Path):
        raise StorePathError(f"Cannot open store '{path}': expected a folder, got a URL as a Path. Pass it as a str.")
    return match is not None and bool(match[2])


class Bucket:
    """Files under a URL, as objects. Copies that `local` fetched lie in a folder of the cache, free to be deleted.

    Args:
        url: 's3://bucket/prefix', 'gs://bucket/prefix' or 'memory://name', without credentials: drivers find those in
            the environment or in files of their own.
        cache: Folder for copies; each store has its own inside. None for $XDG_CACHE_HOME/forethought (~/.cache), or
            for a memory store, which ends with its process, a temporary one.

    Raises:
        StorePathError: the URL is of another kind, names nothing, or carries credentials or options.
    """

    folder: Path | None = None

    def __init__(self, url: str, cache: str | os.PathLike[str] | None = None) -> None:
        self._protocol, self._root = _parsed(url)
        self._cache = None if cache is None else Path(os.path.abspath(cache))
        self._process = _THIS_PROCESS
        self._opened: tuple[int, Any] | None = None
        self._copies: Path | None = None
        self._marked: set[Path] = set()
        self._is_proven = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None, "_copies": None, "_marked": set(), "_is_proven": False}

    def __repr__(self) -> str:
        return f"Bucket('{self.url}')"

    @property
    def url(self) -> str:
        """The URL, in one way of writing it."""
        return f"{self._protocol}://{self._root}"

    def names(self, folder: str) -> list[str]:
        """Name what is directly in a folder, but for names that would not be files or folders elsewhere."""
        inside = self._key(folder) + "/"
        with self._asking() as files:
            try:
                entries = files.ls(inside, detail=False, refresh=True)
            except FileNotFoundError:
                return []
        keys = [entry.strip("/") for entry in entries]
        return [key[len(inside) :] for key in keys if key.startswith(inside) and _is_path(key[len(inside) :])]

    def files(self, folder: str) -> Iterator[tuple[str, Stamp]]:
        """Give path and stamp of every object below a folder."""
        with self._asking() as files:
            found = files.find(self._key(folder), detail=True)
        for key, facts in found.items():
            path = key.strip("/")[len(self._root) + 1 :]
            if _is_path(path) and facts["type"] == "file":
                yield path, _stamp(facts)

    def get(self, path: str, most_bytes: int) -> bytes | None:
        """Read an object, never a copy of it."""
        key = self._key(path)
        with self._asking() as files:
            try:
                facts = files.info(key)
                if facts["type"] != "file":
                    return None
                if facts["size"] > most_bytes:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                return bytes(files.cat_file(key))
            except FileNotFoundError:
                return None

    def put(self, path: str, *parts: Any, keep: bool = False) -> None:
        """Upload an object in one piece, then keep a copy, if there is room for one."""
        with self._asking() as files:
            files.pipe_file(self._key(path), b"".join(parts))
        if keep:
            with suppress(OSError), self._new_copy(path) as temporary, temporary.open("xb") as file:
                file.writelines(parts)

    def put_new(self, path: str, *parts: Any) -> bool:
        """Upload an object unless there is one: the server decides, with a conditional write."""
        if self.stamp(path) is not None:  # there are servers that take the condition and do not keep it
            return False
        try:
            with self._asking() as files:
                files.pipe_file(self._key(path), b"".join(parts), mode="create")
        except FileExistsError:
            return False
        return True

    def remove(self, path: str) -> None:
        """Delete an object, and the copy of it."""
        with self._asking() as files, suppress(FileNotFoundError):
            files.rm_file(self._key(path))
        forget_copy(self._copy(path))

    def stamp(self, path: str) -> Stamp | None:
        """Give size and time of an object; a folder has none."""
        with self._asking() as files:
            try:
                facts = files.info(self._key(path))
            except FileNotFoundError:
                return None
        return _stamp(facts) if facts["type"] == "file" else None

    def local(self, path: str, *, anew: bool = False) -> Path:
        """Give the copy in the cache, fetched whole if it is not there."""
        copy = self._copy(path)
        self._mark(copy)
        if anew or not copy.is_file():
            try:
                self._fetch(path)
            except FileNotFoundError as err:
                if self.stamp(path) is None:
                    raise
                raise OSError(errno.ESTALE, f"'{copy.parent}' was removed meanwhile") from err
        return copy

    def orphans(self) -> list[Path]:
        """Find the copies, and notes of their use, of which the object is gone. Nothing is changed.

        Raises:
            OSError: the bucket cannot be listed.
        """
        there = copies_in(self._copy("").parent)  # looked at first: an object comes before its copy
        known = {self._copy(path).name for path, _ in self.files("")} if there else set()
        return [copy for copy in there if copy.name.removesuffix(USED) not in known]

    def _fetch(self, path: str) -> None:
        with self._new_copy(path) as temporary, self._asking() as files:
            if self._protocol == "memory":  # its files have one position, which threads share
                temporary.write_bytes(files.cat_file(self._key(path)))
            else:
                files.get_file(self._key(path), str(temporary))

    def make_folder(self, folder: str) -> None:
        """Make sure that there is a store to have folders in: objects need none."""
        if folder and self.stamp(MARKER) is None:
            raise FileNotFoundError(errno.ENOENT, f"no {MARKER}")

    def sweep(self, folder: str) -> None:
        """Nothing is left behind: an upload shows whole or not at all."""

    def is_writable(self, folder: str = "") -> bool:
        """Say whether a small object can be written, wherever it is: nothing but trying tells."""
        try:
            if self.stamp(MARKER) is None:
                return False
            if not self._is_proven:
                self.put(_PROBE, b"\n")
                self._is_proven = True
        except (OSError, MissingExtraError):
            return False
        return True

    def _key(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """Give fsspec's file system. Whatever a driver raises leaves as an OSError, without its secrets."""
        try:
            yield self._file_system()
        except MissingExtraError:
            raise
        except Exception as err:
            said = (err.strerror if isinstance(err, OSError) else None) or str(err) or type(err).__name__
            number = err.errno if isinstance(err, OSError) else None
            number = number or next((number for kind, number in _NUMBERS if isinstance(err, kind)), errno.EIO)
            shown = _without_secrets(said)
            raise OSError(number, shown) from (err if shown == said else None)

    def _file_system(self) -> Any:
        """Open the file system, in each process for itself: connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            if self._protocol == "memory" and self._process != _THIS_PROCESS:
                raise OSError(
                    errno.ENXIO,
                    "another process than the one whose memory it is (use a folder, or workers that are forked: "
                    "DataLoader(multiprocessing_context='fork'))",
                )
            self._opened = os.getpid(), _connected(self._protocol)
        return self._opened[1]

    def _copy(self, path: str) -> Path:
        """Where the copy of a file lies. Its name is a digest: no name in the bucket reaches another folder by it."""
        if self._copies is None:
            self._copies = self._folder_of_copies()
        return self._copies / (blake3(path.encode()).hexdigest()[:32] + Path(path).suffix[:16])

    def _folder_of_copies(self) -> Path:
        if self._cache is None and self._protocol == "memory":
            folder = Path(tempfile.mkdtemp(prefix="forethought-"))
            weakref.finalize(self, _remove_own, folder, os.getpid())
            return folder
        base = self._cache or _user_cache()
        folder = base / blake3(self.url.encode()).hexdigest()[:32]
        sweep(folder)
        drop_unused(base)
        return folder

    def _mark(self, copy: Path) -> None:
        """Note that a copy is used: beside it, as its own times tell whether it is what was checked."""
        if copy in self._marked:
            return
        with suppress(OSError):
            copy.with_name(copy.name + USED).touch()
            self._marked.add(copy)

    @contextmanager
    def _new_copy(self, path: str) -> Iterator[Path]:
        """Give a temporary name to write to, which then takes the place of the copy."""
        copy = self._copy(path)
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = copy.with_name(f".{copy.name}.{secrets.token_hex(8)}{TEMPORARY}")
        try:
            yield temporary
            temporary.replace(copy)
        finally:
            with suppress(OSError):
                temporary.unlink()


def _parsed(url: str) -> tuple[str, str]:
    """Return the kind and the root of a URL; refuse what would be a secret in every message and pickle."""
    protocol, _, rest = url.partition("://")
    protocol, root = protocol.lower(), rest.strip("/")
    shown = _without_secrets(url)
    if protocol not in DRIVERS:
        kinds = ", ".join(f"{kind}://" for kind in DRIVERS)
        raise StorePathError(
            f"Cannot open store '{shown}': expected a folder or a URL with {kinds}. Name one of these."
        )
    if shown != url or "@" in root.partition("/")[0]:
        raise StorePathError(
            f"Cannot open store '{shown}': expected a URL without credentials or options, got some. Give them as the "
            f"driver finds them, in the environment or its own files, and open '{protocol}://bucket/prefix'."
        )
    if not _is_path(root):
        raise StorePathError(
            f"Cannot open store '{url}': expected a plain name, got {root!r}. Name one: '{protocol}://bucket/prefix'"
        )
    return protocol, root


def _connected(protocol: str) -> Any:
    import fsspec  # a tenth of a second, for those who use it

    try:
        # Listings must be what is there: other processes write too.
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except ImportError as err:
        raise MissingExtraError(
            f"Cannot open {protocol}:// stores: expected {DRIVERS[protocol]}, got no such package. "
            "Run: pip install 'forethought[remote]'"
        ) from err


def _is_path(path: str) -> bool:
    return all(part not in ("", ".", "..") for part in path.split("/")) and not re.search(r"[\\\0?#]", path)


def _stamp(facts: Mapping[str, Any]) -> Stamp:
    changed = next((facts[name] for name in _CHANGED if facts.get(name) is not None), 0.0)
    return Stamp(int(facts["size"]), changed.timestamp() if hasattr(changed, "timestamp") else float(changed))


def _without_secrets(text: str) -> str:
    """Cut out what in a URL may be a secret: the user's part and the query."""
    return re.sub(r"(?<=://)[^/\s'\"@]*@|\?[^\s'\"]*", "...", text)


def _user_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given if os.path.isabs(given) else os.path.expanduser("~/.cache")) / "forethought"


def _remove_own(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child ends too
        shutil.rmtree(folder, ignore_errors=True)
