"""All keys of a service together: those given, those of the key file, or a generated one.

Knows where keys come from; the check of requests is in `auth`.
"""

from __future__ import annotations

from telechat.serve.auth import Key, KeyRing
from telechat.serve.key_file import read_key_file
from telechat.serve.keys import resolve_keys
from telechat.serve.settings import ServeSettings


def resolve_ring(settings: ServeSettings) -> KeyRing:
    """The keys that open the service.

    Raises:
        ConfigError: a file that cannot be read or written, or that holds no sound keys.
    """
    listed = () if settings.key_file is None else read_key_file(settings.key_file)
    plain = resolve_keys(settings)
    names = ("default", *(f"default-{number}" for number in range(2, len(plain) + 1)))
    # Whoever started the service, and thus knows its plain key, decides what it serves.
    operators = [Key.of(name, key, may_load_adapters=True) for name, key in zip(names, plain, strict=False)]
    return KeyRing([*operators, *listed])
