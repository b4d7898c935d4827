"""Notes as somebody may write them who knows how a seal is made."""

import json

from blake3 import blake3


def sealed(key, body):
    """Give the bytes of a note under a valid seal."""
    return blake3(key.encode() + b"\n" + body).hexdigest().encode() + b"\n" + body


def places_in(value, path=()):
    """Every place in a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places_in(part, (*path, key))


def with_part(value, path, part):
    if not path:
        return part
    changed = inner = json.loads(json.dumps(value))
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = part
    return changed
