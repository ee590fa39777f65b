#!/usr/bin/env python3
"""Makes what Redis and Lading's processes need to know each other: users with passwords, and a settings.yaml for each user.

    python3 deploy/redis/passwords.py deploy/secrets
    python3 deploy/redis/passwords.py secrets --url 'rediss://queue.example:6379/0?ssl_ca_certs=/run/tls/ca.crt'

FOLDER/users.acl       for redis-server --aclfile: the users of *.acl beside this file, `admin` with all rights, `default` off. It holds
                       hashes of passwords alone
FOLDER/USER.password   a password of 256 random bits. One that is there stays: remove it, and run this again, to change it
FOLDER/USER.yaml       settings with the broker's URL: mount it as settings.yaml into the folder that LADING_CONFIG_DIR names
FOLDER/grafana.password

The folder is closed to other users of this machine. The files in it are not, since containers read them as users of their own. Standard
library alone. An existing FOLDER/users.acl is replaced; `ACL LOAD` makes a running Redis read it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import secrets
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ADMIN = "user admin on ~* &* +@all"
# Off: nobody is it. But Redis loads its log as this user, and of one without rights it drops every transaction in there.
DEFAULT = "user default off resetpass ~* &* +@all"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--url", default="redis://redis:6379/0", help="where Redis is, without a user  [%(default)s]")
    given = parser.parse_args(arguments)
    if not re.fullmatch(r"rediss?://[^@/\s\"'\\]+(:\d+)?(/\d+)?(\?[^\s\"'\\]+)?", given.url):
        parser.error(f"--url {given.url}: expected redis://HOST:PORT/DB or rediss://..., without user and password")
    given.folder.mkdir(parents=True, exist_ok=True)
    given.folder.chmod(0o700)
    lines = [DEFAULT]
    for line in [file.read_text().strip() for file in sorted(HERE.glob("*.acl"))] + [ADMIN]:
        user = line.split()[1]
        password = _password(given.folder / f"{user}.password")
        lines.append(f"{line} #{hashlib.sha256(password.encode()).hexdigest()}")
        scheme, rest = given.url.split("://", 1)
        _write(given.folder / f"{user}.yaml", f'broker_url: "{scheme}://{user}:{password}@{rest}"\n')
    _password(given.folder / "grafana.password")
    _write(given.folder / "users.acl", "\n".join(lines) + "\n")
    print(f"{given.folder}: {len(lines) - 1} users")
    return 0


def _password(file: Path) -> str:
    """What is in the file, made now if it is not there. In URLs it needs no quoting."""
    if not file.exists():
        _write(file, secrets.token_urlsafe(32))
    found = file.read_text().strip()
    if not re.fullmatch(r"[\w-]{16,}", found):
        sys.exit(f"{file}: expected at least 16 letters, digits, - and _")
    return found


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o444)
    os.replace(new, file)


if __name__ == "__main__":
    sys.exit(main())
