"""``python -m nfctl`` is the same as ``nfctl``."""

from nfctl.cli import main

if __name__ == "__main__":
    main()
