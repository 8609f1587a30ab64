"""``python -m edgectl``."""

from edgectl.main import main

main()
