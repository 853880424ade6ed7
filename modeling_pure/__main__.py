"""The command line `pure`, as `python -m modeling_pure`."""

from pure import main

if __name__ == "__main__":
    main()
