"""`python -m grid` is the command `grid`."""

from grid.cli import main

if __name__ == "__main__":
    main()
