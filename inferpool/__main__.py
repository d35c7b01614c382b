"""`python -m inferpool`: the same as the command `inferpool`."""

from inferpool.cli.main import main

if __name__ == "__main__":
    main()
