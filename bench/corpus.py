"""``python -m bench corpus --out DIR``: the pair of real firmware images that measurements are made on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lab.images import best_images, cache_directory, digest_of


def main(arguments: list[str]) -> int:
    """Make the pair and print where it is."""
    parser = argparse.ArgumentParser(prog="python -m bench corpus", description=__doc__)
    parser.add_argument("--out", type=Path, default=cache_directory(), help="where the images go")
    parser.add_argument("--json", metavar="FILE", help="write one JSON object; - is stdout")
    options = parser.parse_args(arguments)
    pair = best_images(options.out)
    result = {
        name: {"path": str(path), "sha256": digest_of(path)[0], "bytes": digest_of(path)[1]}
        for name, path in (("old", pair.old), ("new", pair.new))
    }
    table = sys.stderr if options.json == "-" else sys.stdout
    for name, image in result.items():
        print(f"{name}  {image['sha256']}  {image['bytes']:>11}  {image['path']}", file=table)
    if options.json:
        text = json.dumps({"source": pair.source.value, **result})
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 0
