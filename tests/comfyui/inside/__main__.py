"""`python inside FILE.FUNCTION` in the checkout's folder runs one check and prints its result, one line of JSON, the last one."""

import importlib
import json
import sys

if __name__ == "__main__":
    file, _, function = sys.argv[1].partition(".")
    print("\n" + json.dumps(getattr(importlib.import_module(file), function)()))
