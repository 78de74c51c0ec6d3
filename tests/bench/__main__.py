"""python -m tests.bench [NAME...]: runs all benchmarks of this folder, or the named ones, one after another.

Each prints ratios of times measured in the same run: ratios differ less between machines than times.
"""

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run each benchmark in its own process, so that none warms up another."""
    scripts = sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("__")
    )
    unknown = set(sys.argv[1:]) - set(scripts)
    if unknown:
        print(f"no such benchmark: {sorted(unknown)}; choose from {scripts}", file=sys.stderr)
        return 2
    codes = []
    for name in sys.argv[1:] or scripts:
        print(f"\n== {name} ==", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", f"tests.bench.{name}"]).returncode)
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
