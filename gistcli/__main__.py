"""`python -m gistcli` is the same program as `gist`."""

from gistcli.cli import main

if __name__ == "__main__":
    main()
