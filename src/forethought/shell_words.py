"""What messages tell a program to do, as what somebody at a shell can type."""

import re

_WORDS = [
    (re.compile(pattern), command)
    for pattern, command in (
        (
            r"Make it with Store\(path\)",
            "Check the path (ls), or fill it: forethought extract DATA --model MODEL --store FOLDER",
        ),
        (r"got readonly=True\. Open it with Store\(path\)", "got a command that only reads. Run forethought extract"),
        (r"open the store again with Store\(path\)", "see where it went (ls), and run the command again"),
        (
            r"[Tt]o read only, open it with Store\(path, readonly=True\)",
            "forethought store ls, verify and explain need no such right",
        ),
        (r"Name one that you may write to: Store\(path\)", "Name one that you may write to: --store FOLDER"),
        (r"Store\('[^']*', cache=folder\)", "XDG_CACHE_HOME=FOLDER forethought ..."),
        (r": Store\('([^']*)'\)", r": --store '\1'"),
        (
            r"ft\.extract\(model, dataset, store\)",
            "forethought extract DATA --model MODEL --store FOLDER",
        ),
    )
]


def in_shell(message: str) -> str:
    """Say a message's fixes as commands.

    Example:
        >>> in_shell("expected a store to read, got none. Make it with Store(path).").partition(": ")[2]
        'forethought extract DATA --model MODEL --store FOLDER.'
    """
    for pattern, command in _WORDS:
        message = pattern.sub(command, message)
    return message
