"""`python -m overheard`, which torchrun starts."""

from overheard.cli import main

main()
