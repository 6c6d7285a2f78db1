"""Files that bayesws wrote, changed by hand and sealed anew: as an older version might have written them."""

import json

from bayesws.io.json_files import sealed


def rewritten(path, change):
    """Let `change` alter the record in a file, and put the seal of the altered one beside it."""
    record = json.loads(path.read_text())
    del record["sha256"]
    change(record)
    path.write_text(json.dumps(sealed(record)))
