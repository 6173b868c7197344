"""Postfix: SMTP into the queue, and from there into a Maildir."""

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from bench.figures import Sample
from bench.peers.contest import SINGLES, Load, Peer, Setting
from bench.peers.exchange import MESSAGE_BYTES, SILENCE_S_MAX, sample
from bench.peers.machine import Unavailable, children_cpu_s, free_port
from bench.peers.packages import debian_version
from meshproto.cli.processes import Failed

DOMAIN: Final = "mesh.test"
OWNER: Final = "nobody"
"""Of the Maildir: Postfix delivers nothing as root."""
PASSABLE: Final = 0o711
PROBE_MESSAGES: Final = 4
"""For each session, to learn how many make up the time that is wanted."""
POLL_S: Final = 0.005
MAIN: Final = """\
compatibility_level = 3.6
queue_directory = {place}/queue
data_directory = {place}/data
maillog_file = /dev/stdout
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.{domain}
mynetworks = 127.0.0.0/8
mydestination =
alias_maps =
alias_database =
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {place}/mail
virtual_mailbox_maps = static:userx/
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
"""
MASTER: Final = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix(Peer):
    """A process for each session: more than 64 of them is not how it is used."""

    key = "postfix"
    title = "Postfix, queue and Maildir"
    acknowledged = "fsynced in the queue, then once more in the Maildir"
    durable = True
    work = "message"
    loads = SINGLES[:2]
    packages = ("postfix",)

    def start(self, setting: Setting) -> None:
        binary = shutil.which("postfix", path="/usr/sbin:/usr/bin")
        if binary is None:
            raise Unavailable("postfix is not installed")
        if os.geteuid() != 0:
            raise Unavailable("postfix starts as root only")
        self.version = debian_version("postfix")
        self._port = free_port()
        place = setting.servers.place("postfix")
        owner = pwd.getpwnam(OWNER)
        words = {"place": place, "domain": DOMAIN, "port": self._port, "uid": owner.pw_uid, "gid": owner.pw_gid}
        (place / "main.cf").write_text(MAIN.format(**words), encoding="ascii")
        (place / "master.cf").write_text(MASTER.format(**words), encoding="ascii")
        for name in ("queue", "data", "mail"):
            (place / name).mkdir(mode=0o755)
        shutil.chown(place / "data", "postfix")
        shutil.chown(place / "mail", OWNER)
        for directory in (setting.servers.directory, place):  # its processes run as another user
            directory.chmod(PASSABLE)
        self._new = place / "mail" / "userx" / "new"
        child = setting.servers.serve("postfix", self._port, binary, "-c", place, "start-fg")
        self._roots = (child.process.pid,)

    def measure(self, load: Load, seconds: float) -> Sample:
        """By smtp-source, from the first session until the last message is in the Maildir."""
        took_s = self._send(load.in_flight, PROBE_MESSAGES * load.in_flight)
        count = load.in_flight * max(PROBE_MESSAGES, round(seconds * PROBE_MESSAGES / took_s))
        server_s, load_s = self.usage(), children_cpu_s()
        took_s = self._send(load.in_flight, count)
        server_s, load_s = self.usage() - server_s, children_cpu_s() - load_s
        return sample(count / took_s, server_s, load_s, took_s)

    def _send(self, sessions: int, count: int) -> float:
        shutil.rmtree(self._new, ignore_errors=True)
        began = time.perf_counter()
        command = ["/usr/sbin/smtp-source", "-d", "-s", str(sessions), "-m", str(count), "-l", str(MESSAGE_BYTES)]
        command += ["-f", f"bobby@{DOMAIN}", "-t", f"userx@{DOMAIN}", f"127.0.0.1:{self._port}"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise Failed(f"smtp-source: {ended.stderr[-300:]}")
        self._wait(count)
        return time.perf_counter() - began

    def _wait(self, count: int) -> None:
        last, since = 0, time.monotonic()
        while (there := _files(self._new)) < count:
            if there > last:
                last, since = there, time.monotonic()
            if time.monotonic() - since > SILENCE_S_MAX:
                raise Failed(f"{there} of {count} messages are in the Maildir")
            time.sleep(POLL_S)


def _files(directory: Path) -> int:
    return sum(1 for _ in directory.iterdir()) if directory.exists() else 0
