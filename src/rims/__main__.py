"""``python -m rims``: the command ``rims``."""

from rims.cli import main

if __name__ == "__main__":
    main()
