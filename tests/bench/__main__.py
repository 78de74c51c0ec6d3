"""python -m tests.bench [NAME...]: every benchmark of this folder, or the named ones, one after the other.

Each prints ratios of things measured side by side in the same run; machines differ, ratios less so.
"""

import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run them as processes of their own, so that none warms up another."""
    scripts = sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("__")
    )
    unknown = set(sys.argv[1:]) - set(scripts)
    if unknown:
        print(f"no benchmark {sorted(unknown)}; there are {scripts}", file=sys.stderr)
        return 2
    codes = []
    for name in sys.argv[1:] or scripts:
        print(f"\n== {name} ==", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", f"tests.bench.{name}"]).returncode)
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
