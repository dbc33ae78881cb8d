"""A Hub on 127.0.0.1 that knows one user, makes private repositories, and fails where it is told to."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def failing_hub(fault="", at="/commit/", role="write", public=(), upload_mode="regular"):
    """Serve a Hub.

    Args:
        fault: An HTTP status, `reset` or `stall`; nothing fails when empty.
        at: What a path must hold to fail.
        role: Of the user's token.
        public: Names of repositories that exist and are public.
        upload_mode: What the Hub says of every file: `regular`, or `lfs` for the Xet protocol.

    Yields:
        Its URL, and the list of (method, path, body) of all requests.
    """
    seen, stop = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append((self.command, self.path, body))
            if fault and at in self.path:
                if fault == "stall":
                    stop.wait(60)
                elif fault != "reset":
                    return self.send(int(fault), {"error": "the disk of the Hub is on fire"})
                self.close_connection = True
                return self.connection.close()
            return self.send(*self.route(body))

        def route(self, body):
            path = self.path.partition("?")[0]
            if path == "/api/whoami-v2":
                auth = {"accessToken": {"role": role}}
                return 200, {"name": "me", "type": "user", "orgs": [{"name": "lab"}], "auth": auth}
            if path == "/api/repos/create":
                name = f"me/{json.loads(body)['name']}"
                return (409 if name in public else 200), {"url": f"http://127.0.0.1/{name}", "name": name}
            if path == "/api/validate-yaml":
                return 200, {"errors": [], "warnings": []}
            if "/preupload/" in path:
                files = [{"path": file["path"], "uploadMode": upload_mode, "shouldIgnore": False, "oid": None}
                         for file in json.loads(body)["files"]]  # fmt: skip
                return 200, {"files": files}
            if "/commit/" in path:
                return 200, {"commitUrl": "http://127.0.0.1/me/x/commit/" + "0" * 40, "commitOid": "0" * 40}
            name = "/".join(path.split("/")[3:5])
            if path.startswith("/api/models/") and (name in public or any("create" in request[1] for request in seen)):
                if "/tree/" in path or "/refs" in path:
                    return 200, []
                return 200, {"id": name, "private": name not in public, "sha": "0" * 40, "siblings": [], "tags": []}
            return 404, {"error": "Repository not found"}

        def send(self, status, content):
            data = json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_HEAD = do_PUT = answer  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
