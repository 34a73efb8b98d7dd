#!/usr/bin/env bash
# create_repo(private=True, exist_ok=True) says nothing where the repository exists and is public, and leaves it so.
#
# Guess:  with exist_ok=True an existing repository is made private, or the call fails, so that what is pushed next is
#         not public.
# Seen:   huggingface_hub 2.4.0 takes the hub's answer 409 for success and returns the repository's address; nothing
#         else is asked for. Whoever needs a private repository has to look at model_info(...).private first.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check huggingface_hub==2.4.0
HF_HOME="$place/home" "$place/venv/bin/python" - <<'PY'
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import huggingface_hub
from huggingface_hub import HfApi

asked = []


class Hub(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked.append((self.path, json.loads(body)))
        url = f"http://127.0.0.1:{self.server.server_port}/me/public"
        answer = json.dumps({"error": "You already created this model repo", "url": url}).encode()
        self.send_response(409)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


server = HTTPServer(("127.0.0.1", 0), Hub)
Thread(target=server.serve_forever, daemon=True).start()
found = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_x").create_repo(
    "me/public", private=True, exist_ok=True
)
print("huggingface_hub", huggingface_hub.__version__, "asked for", asked, "and returned", found)
assert [path for path, _ in asked] == ["/api/repos/create"], "it asks for more now"
PY
