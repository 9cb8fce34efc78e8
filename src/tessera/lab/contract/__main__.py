"""`python -m tessera.lab.contract [socket/name ...]`: the contract of parts, one line per check; exit code 1 if one is broken."""

from __future__ import annotations

import sys

from tessera.errors import UserError
from tessera.lab.contract import outcomes


def main(names: list[str]) -> int:
    """Exit code 0, 1 for a broken contract, 2 for a part that does not exist."""
    broken = 0
    try:
        for row in outcomes(*names):
            reason = f"  {row['reason']}" if row["reason"] else ""
            sys.stdout.write(f"{row['part']:<32} {row['check']:<10} {row['state']}{reason}\n")
            sys.stdout.flush()
            broken += row["state"] == "broken"
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
