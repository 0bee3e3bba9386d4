"""What is measured of services: against loading all of their chains with iptables-restore.

``service-one`` changes one endpoint with ``nfctl service set-endpoints``, ``service-file`` applies
a file in which one endpoint is another, ``service-all`` a file where nothing was; ``kube-show``
reads the whole dump back. The scale is the number of services, of five endpoints each.
"""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

from tests.bench.harness import Bound, Result, Side, race
from tests.bench.room import Wrong

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.measures import Bench

NFCTL, LEGACY = "nfctl", "iptables-legacy"
SIZES = (1_000, 5_000, 10_000)
ENDPOINTS = 5
SHOW_SECONDS = 3.0
_JUDGED_FROM = 10_000
_OTHERS = ("10.250.0.1", "10.250.0.2")  # the endpoint that comes and goes
_FLUSH = "*nat\nCOMMIT\n*filter\nCOMMIT\n*mangle\nCOMMIT\n"


def listed(count: int, first: str) -> str:
    """Return a list of services as JSON; ``first`` is an endpoint of the one in the middle."""
    services = []
    for number in range(count):
        places = range(number * ENDPOINTS, (number + 1) * ENDPOINTS)
        addresses = [f"10.{at // 62500}.{at // 250 % 250}.{at % 250 + 1}" for at in places]
        if number == count // 2:
            addresses[0] = first
        services.append({
            "name": f"ns{number % 50}/svc-{number}:http",
            "port": 80,
            "cluster-ips": [f"10.96.{number // 250}.{number % 250 + 1}"],
            "endpoints": [{"address": address, "port": 8080} for address in addresses],
        })  # fmt: skip
    return json.dumps({"version": 1, "cluster": ["10.0.0.0/9"], "services": services})


class Job:
    """Services in the room of nfctl, and what iptables-save says of them."""

    def __init__(self, bench: Bench, count: int) -> None:
        self.bench, self.count = bench, count
        self.texts = [listed(count, other) for other in _OTHERS]
        self.files = [bench.scratch / f"services-{count}-{n}.json" for n in range(2)]
        for file, text in zip(self.files, self.texts, strict=True):
            file.write_text(text)
        self.state = bench.scratch / f"state-services-{count}"
        self.dump = bench.scratch / f"services-{count}.dump"
        flush = bench.scratch / "flush"
        flush.write_text(_FLUSH)
        bench.room(NFCTL).run([f"{LEGACY}-restore", flush])
        shutil.rmtree(self.state, ignore_errors=True)
        self.nfctl("service", "apply", "--quiet", self.files[0])
        self.dump.write_text(self.saved(NFCTL))

    def argv(self, *words: str | Path) -> list[str | Path]:
        return ["env", f"NFCTL_STATE_DIR={self.state}", self.bench.nfctl, *words]

    def nfctl(self, *words: str | Path) -> None:
        self.bench.room(NFCTL).run(self.argv(*words))

    def saved(self, name: str) -> str:
        text = self.bench.room(name).output([f"{LEGACY}-save"])
        return re.sub(r"\[[0-9]+:[0-9]+\]", "[0:0]", text)

    def set_endpoint(self, turn: int) -> list[str | Path]:
        service = json.loads(self.texts[turn % 2])["services"][self.count // 2]
        places = [f"{one['address']}:{one['port']}" for one in service["endpoints"]]
        return self.argv("service", "set-endpoints", "--quiet", service["name"], *places)

    def there(self, turn: int) -> None:
        """Raise unless the one endpoint is there, and all other chains."""
        text = self.saved(NFCTL)
        for number, other in enumerate(_OTHERS):
            if (f" --to-destination {other}:" in text) is not (number == turn % 2):
                raise Wrong(f"endpoint {other} is not as it should be")
        found = text.count("--to-destination ")
        if found != self.count * ENDPOINTS:
            raise Wrong(f"there are {found} endpoints")

    def legacy(self) -> Side:
        """Return the other side: it loads the full set."""

        def prove() -> None:
            self.bench.room(LEGACY).run([f"{LEGACY}-restore", self.dump])
            if self.saved(LEGACY).count("--to-destination ") != self.count * ENDPOINTS:
                raise Wrong("iptables-restore did not load the services")

        return Side(
            name=LEGACY,
            room=self.bench.room(LEGACY),
            argv=lambda _: [f"{LEGACY}-restore", self.dump],
            prove=prove,
        )

    def race(self, name: str, side: Side, floor: float | None) -> Result:
        bound = Bound(LEGACY)
        if floor is not None and self.count >= _JUDGED_FROM:
            bound = Bound(LEGACY, floor)
        return race(name, self.count, [side, self.legacy()], [bound], self.bench.rounds)


def one(bench: Bench, count: int) -> Result:
    """Change one endpoint, in turn to the one and the other."""
    job = Job(bench, count)

    def prove() -> None:
        for turn in (1, 0):
            bench.room(NFCTL).run(job.set_endpoint(turn))
            job.there(turn)

    side = Side(
        name=NFCTL,
        room=bench.room(NFCTL),
        argv=lambda turn: job.set_endpoint(turn + 1),
        prove=prove,
        still=lambda: job.there(bench.rounds),
    )
    return job.race("service-one", side, 2.0)


def file(bench: Bench, count: int) -> Result:
    """Apply a file in which one endpoint is another."""
    job = Job(bench, count)

    def words(turn: int) -> list[str | Path]:
        return job.argv("service", "apply", "--quiet", job.files[turn % 2])

    def prove() -> None:
        for turn in (1, 0):
            bench.room(NFCTL).run(words(turn))
            job.there(turn)

    side = Side(
        name=NFCTL,
        room=bench.room(NFCTL),
        argv=lambda turn: words(turn + 1),
        prove=prove,
        still=lambda: job.there(bench.rounds),
    )
    return job.race("service-file", side, 2.0)


def all_(bench: Bench, count: int) -> Result:
    """Apply a file where there were no services."""
    job = Job(bench, count)
    flush = bench.scratch / "flush"

    def anew(_turn: int = 0) -> None:
        shutil.rmtree(job.state, ignore_errors=True)
        bench.room(NFCTL).run([f"{LEGACY}-restore", flush])

    def again(_turn: int = 0) -> None:
        job.there(0)
        anew()

    side = Side(
        name=NFCTL,
        room=bench.room(NFCTL),
        argv=lambda _: job.argv("service", "apply", "--quiet", job.files[0]),
        prove=again,
        after=again,
    )
    return job.race("service-all", side, None)


def show(bench: Bench, count: int) -> Result:
    """Read the dump back into services."""
    job = Job(bench, count)

    def prove() -> None:
        words = job.argv("kube", "show", "--rules", job.dump, "--json")
        found = json.loads(bench.room(NFCTL).output(words))
        if len(found["services"]) != count:
            raise Wrong(f"{len(found['services'])} services were read back")

    side = Side(
        name=NFCTL,
        room=bench.room(NFCTL),
        argv=lambda _: job.argv("kube", "show", "--rules", job.dump),
        prove=prove,
    )
    bounds = [Bound(LEGACY, SHOW_SECONDS, in_seconds=True)] if count >= _JUDGED_FROM else []
    return race("kube-show", count, [side, job.legacy()], bounds or [Bound(LEGACY)], bench.rounds)


BY_SERVICES = {"service-one": one, "service-file": file, "service-all": all_, "kube-show": show}
