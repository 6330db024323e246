"""`python -m kdlib.study` is the same as `kdlib study`."""

from kdlib.study.command import main

if __name__ == "__main__":
    main()
