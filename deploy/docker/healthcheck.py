"""What an image's HEALTHCHECK runs: asks this container's own /healthz and prints the answer. Exit code 0 if work moves, else 1.

By hand also `python -P /opt/healthcheck.py /readyz`. Of the standard library alone, since the images have no curl; past any proxy that
the environment names.
"""

import http.client
import os
import sys

LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # where what is bound to every address is asked
TIMEOUT_S = 5.0


def main() -> int:
    port = int(os.environ.get("LADING_METRICS_PORT", "9464"))
    if not port:
        print("LADING_METRICS_PORT is 0: there is no /healthz to ask; run this container without a health check")
        return 1
    bind = os.environ.get("LADING_METRICS_BIND", "")
    connection = http.client.HTTPConnection(LOOPBACK.get(bind, bind), port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", sys.argv[1] if len(sys.argv) > 1 else "/healthz")
        answer = connection.getresponse()
        print(answer.status, answer.read(2000).decode(errors="replace").strip())
        return 0 if answer.status == 200 else 1
    except OSError as error:
        print(f"no answer from port {port}: {error}")
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
