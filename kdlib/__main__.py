"""`python -m kdlib` is the same as `kdlib`."""

from kdlib.cli import main

if __name__ == "__main__":
    main()
