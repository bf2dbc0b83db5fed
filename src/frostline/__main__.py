"""``python -m frostline``: the same as the ``frostline`` command."""

from __future__ import annotations

from frostline.cli.app import main

if __name__ == "__main__":
    main()
