"""What a data set's code may read without anybody seeing it: neither in its parts, nor as a file that Python opens.

Names are compared wherever they stand, since nothing tells what they are looked up on: one too many costs a reading
of the samples, one too few a wrong row.
"""

import os
import sys
import types

from forethought.errors import IdentityError
from forethought.identifying.sources import imported, may_call, names, roundabout

KNOWN = frozenset({"PIL", "numpy", "torch", "torchvision"})  # these open files by way of Python, but for:
_UNSEEN = (
    "_ctypes", "_socket", "_sqlite3", "ctypes", "dbm", "ftplib", "http", "multiprocessing", "shelve", "socket",
    "sqlite3", "subprocess", "torch.ops", "torchaudio", "torchvision.datasets", "torchvision.io",
    "transformers.audio_utils", "transformers.image_utils", "transformers.video_utils", "urllib",
)  # fmt: skip
_SEEN = ("torchvision.datasets.cifar", "torchvision.datasets.fakedata", "torchvision.datasets.folder",
         "torchvision.datasets.mnist", "torchvision.datasets.vision")  # fmt: skip
_STILL = {  # modules of Python's own that give the same at any time, in any process; files, they open in the open
    "__future__", "abc", "argparse", "array", "ast", "base64", "binascii", "bisect", "builtins", "bz2", "cmath",
    "codecs", "collections", "colorsys", "concurrent", "configparser", "contextlib", "copy", "copyreg", "csv",
    "dataclasses", "datetime", "decimal", "difflib", "encodings", "enum", "errno", "fnmatch", "fractions", "functools",
    "genericpath", "glob", "gzip", "hashlib", "heapq", "hmac", "html", "io", "ipaddress", "itertools", "json",
    "keyword", "logging", "lzma", "marshal", "math", "mmap", "nt", "ntpath", "numbers", "operator", "os", "pathlib",
    "pickle", "plistlib", "posix", "posixpath", "pprint", "queue", "random", "re", "reprlib", "secrets", "shlex",
    "shutil", "sre", "stat", "statistics", "string", "struct", "sys", "tarfile", "textwrap", "thread", "threading",
    "tokenize", "tomllib", "traceback", "types", "typing", "unicodedata", "warnings", "wave", "weakref", "xml",
    "zipfile", "zlib",
}  # fmt: skip
_FOUND_BY_NAME = {"from_file", "read_file", "read_image", "truetype"}
_REACH = {"globals", "locals", "vars", "eval", "exec", "__import__", "environ", "environb", "getenv", "getenvb"}
_ASKS = {  # whether a file is there, what its times are, where a link leads, what an open descriptor gives
    "access", "exists", "fstat", "get_data", "getatime", "getctime", "getmtime", "getsize", "getxattr", "is_dir",
    "is_file", "is_junction", "is_mount", "is_symlink", "isdir", "isfile", "isjunction", "islink", "ismount",
    "lexists", "listxattr", "lstat", "pread", "preadv", "readlink", "readv", "realpath", "resolve", "samefile",
    "sameopenfile", "stat", "statvfs",
}  # fmt: skip
HERE_AND_NOW = {  # the working folder, the user's, the clock, the worker
    "abspath", "absolute", "cwd", "expanduser", "expandvars", "get_worker_info", "getcwd", "getcwdb", "home", "now",
    "relpath", "today", "utcnow",
}  # fmt: skip
_HIDDEN = _FOUND_BY_NAME | _REACH | _ASKS | HERE_AND_NOW
_OF_THE_MACHINE = ("cpu_count", "getloadavg", "getlogin", "getpid", "getppid", "times", "uname")


def check_function(function: types.FunctionType, libraries: set[str]) -> None:
    """Refuse a function that may read unseen; `libraries` among the modules that it imports are told by version.

    Raises:
        IdentityError: it may.
    """
    found = names(function.__code__)
    hidden = found & _HIDDEN | roundabout(function.__code__)
    hidden |= {name for name in found.intersection(_OF_THE_MACHINE) if may_call(function, os, name)}
    if "read" in found and "open" not in found and may_call(function, os, "read"):
        hidden.add("read")  # of a descriptor that was opened before
    hidden |= imported(function.__code__) - libraries
    if hidden:
        raise refusal(f"{function.__qualname__}, which uses {sorted(hidden)[0]}")


def check_item(module: str, name: str) -> None:
    """Refuse a function or class of a library that may read unseen.

    Raises:
        IdentityError: it may.
    """
    if is_unseen(module) or name in _HIDDEN:
        raise refusal(f"{module}.{name}")


def check_module(module: types.ModuleType, read: set[str]) -> None:
    """Refuse a library's module if what code reads there, by these names, may read unseen.

    Raises:
        IdentityError: it may.
    """
    if is_unseen(module.__name__):
        raise refusal(module.__name__)
    for name in read & vars(module).keys():
        item = vars(module)[name]
        if isinstance(item, types.ModuleType):
            if item is not module:
                check_module(item, read - {name})
        elif isinstance(item, types.FunctionType | types.BuiltinFunctionType | type):
            where = str(getattr(item, "__module__", None) or module.__name__)
            if is_unseen(where) or name in _FOUND_BY_NAME:
                raise refusal(f"{where}.{name}")


def is_clock(module: str | None) -> bool:
    """Say whether functions of this module tell the time."""
    return module == "time"


def is_unseen(module: str) -> bool:
    """Say whether functions of this module may read what nobody sees."""
    root = module.split(".")[0]
    if root in sys.stdlib_module_names and not {root, root.lstrip("_")} & _STILL:  # _io and io are one
        return True
    return _within(module, _UNSEEN) and not _within(module, _SEEN)


def has_unseen_backend() -> bool:
    """Say whether torchvision reads pictures by something else than PIL."""
    torchvision = sys.modules.get("torchvision")
    return torchvision is not None and torchvision.get_image_backend() != "PIL"


def refusal(what: str) -> IdentityError:
    """Say that this may read unseen."""
    return IdentityError(f"Cannot tell what a data set reads: expected code that shows it, got {what}.")


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)
