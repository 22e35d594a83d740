"""``python -m service`` is the console script ``bitnet``."""

from service.cli import main

main()
