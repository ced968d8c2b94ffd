"""probe.py URL BYTES CONNECTIONS: what a link gives. Every connection asks once for the first BYTES of the blob at URL.

Prints JSON: the least time to a first byte in seconds, and bytes a second from the first byte of all to the last.
"""

import http.client
import json
import sys
import threading
import time
import urllib.parse


def fetch(url, size, answers):
    connection = http.client.HTTPConnection(url.netloc, timeout=60)
    connection.connect()
    asked = time.monotonic()
    connection.request("GET", url.path, headers={"Range": f"bytes=0-{size - 1}"})
    answer = connection.getresponse()
    if answer.status != 206:
        raise RuntimeError(f"status {answer.status} for a range of {url.geturl()}")
    buffer, got = bytearray(1 << 20), answer.readinto(bytearray(1))
    first = time.monotonic()
    while count := answer.readinto(buffer):
        got += count
    answers.append((first - asked, first, time.monotonic(), got))


def main():
    url, size, connections = urllib.parse.urlsplit(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    answers = []
    threads = [threading.Thread(target=fetch, args=(url, size, answers)) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(answers) != connections:
        sys.exit("probe: a connection failed")
    latencies, firsts, lasts, got = zip(*answers)
    print(json.dumps({"first_byte": min(latencies), "rate": sum(got) / (max(lasts) - min(firsts))}))


if __name__ == "__main__":
    main()
