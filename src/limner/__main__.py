"""`python -m limner` is `limner`."""

from limner.cli.main import main

if __name__ == "__main__":
    main()
