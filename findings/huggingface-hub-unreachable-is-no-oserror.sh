#!/usr/bin/env bash
# A hub that refuses the connection is no OSError, while every answer of the hub that is an error is one.
#
# Guess:  huggingface_hub's errors of the network are OSErrors (ConnectionError), as they were with requests, and as its
#         own HfHubHTTPError still is, so `except OSError` around a call catches both.
# Seen:   huggingface_hub 2.4.0 raises httpx2.ConnectError for an endpoint that cannot be reached; it is no OSError, and
#         the package that it comes from is named httpx2, not httpx.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check huggingface_hub==2.4.0
HF_HOME="$place/home" "$place/venv/bin/python" - <<'PY'
import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

try:
    HfApi(endpoint="http://127.0.0.1:1").dataset_info("owner/name")
except Exception as error:  # noqa: BLE001
    found = error
kinds = [f"{kind.__module__}.{kind.__name__}" for kind in type(found).__mro__]
print("huggingface_hub", huggingface_hub.__version__, "raises", " < ".join(kinds))
assert not isinstance(found, OSError) and issubclass(HfHubHTTPError, OSError), "both are OSErrors now"
assert kinds[0].startswith("httpx2."), "the error is another package's now"
PY
