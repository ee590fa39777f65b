"""What an image must be, read from its Dockerfile: a list of what is wrong with it. A parser of the instructions we use, and no more."""

from __future__ import annotations

import dataclasses
import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

TARGETS = ("producer", "worker-cpu", "worker-cuda")
LABELS = ("title", "description", "version", "revision", "licenses")
WRITTEN = ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME")  # folders that programs write to
UNINSTALLED = ("pip uninstall --yes pip", "rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/ensurepip")
HEALTH_PORT = "9464"  # of healthcheck.py, unless it is told another
LEAST_UID = 10_000  # no user of a usual host
PINNED = re.compile(r".+@sha256:[0-9a-f]{64}|.+:v?\d+\.\d+\.\d+[\w.-]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Stage:
    name: str
    base: str  # as written, arguments put in
    steps: list[tuple[str, str]]  # instruction, what follows


def stages(text: str) -> dict[str, Stage]:
    """The stages by name; arguments before the first FROM are put into the later ones' bases."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    steps = [line.split(None, 1) for line in re.sub(r"\\\n\s*", " ", lines).splitlines() if line.strip()]
    given: dict[str, str] = {}
    found: dict[str, Stage] = {}
    for word, rest in [(one[0].upper(), one[1].strip()) for one in steps]:
        if word == "ARG" and not found:
            given |= [rest.split("=", 1)]
        elif word == "FROM":
            base, _, name = re.fullmatch(r"(\S+)(\s+AS\s+(\S+))?", rest, re.IGNORECASE).groups()  # pyright: ignore
            base = re.sub(r"\$\{(\w+)\}", lambda match, given=given: given[match[1]], base)
            found[name] = Stage(name, base, [])
        else:
            [*found.values()][-1].steps.append((word, rest))
    return found


def lineage(all_stages: dict[str, Stage], name: str) -> list[tuple[str, str]]:
    """The steps of a stage behind those of the stages that it is built on."""
    if name not in all_stages:
        return []
    return lineage(all_stages, all_stages[name].base) + all_stages[name].steps


def problems(text: str, root: Path, ignore: str) -> list[str]:
    """What is wrong with the Dockerfile `text` of the repository `root`, whose .dockerignore says `ignore`."""
    found = stages(text)
    bad = [f"{one.base} is neither a stage, nor has it a digest or a whole version" for one in found.values()
           if one.base not in found and not PINNED.fullmatch(one.base)]  # fmt: skip
    for stage in found.values():
        for word, rest in stage.steps:
            if word == "ADD":
                bad.append(f"ADD {rest}: COPY says what it does")
            if word in ("ARG", "ENV") and re.search(r"PASSWORD|TOKEN|SECRET|API_KEY", rest):
                bad.append(f"{word} {rest}: stays in the image")
            if word == "COPY":
                bad += _copies(rest, found, root, ignore.splitlines())
            if word == "RUN" and re.search(r"pip\S* (--python \S+ )?install (?!.*--constraint)", rest):
                bad.append(f"installs without the constraints: {rest}")
    for target in TARGETS:
        bad += [f"{target}: {one}" for one in _target(lineage(found, target))]
    return bad


def _copies(rest: str, found: dict[str, Stage], root: Path, ignore: list[str]) -> list[str]:
    words = rest.split()
    if words[0].startswith("--from="):
        stage = words[0].removeprefix("--from=")
        return [] if stage in found else [f"COPY from {stage}, which is no stage"]
    return [f"COPY {source}: not in the repository" for source in words[:-1] if not (root / source).exists()] + [
        f"COPY {source}: .dockerignore keeps it out" for source in words[:-1] if ignored(source, ignore)
    ]


def _target(steps: list[tuple[str, str]]) -> list[str]:
    last = dict(steps)  # of each instruction, the one that counts
    bad = [
        f"no {word}"
        for word in ("USER", "ENTRYPOINT", "CMD", "HEALTHCHECK", "STOPSIGNAL", "VOLUME")
        if word not in last
    ]
    if bad:
        return bad
    ids = last["USER"].split(":")
    if len(ids) != 2 or not all(one.isdigit() and int(one) >= LEAST_UID for one in ids):
        bad.append(f"USER {last['USER']}: expected numbers from {LEAST_UID}, of a user and a group")
    health = last["HEALTHCHECK"].partition("CMD")[2]
    bad += [f"not in exec form: {form}" for form in (last["ENTRYPOINT"], last["CMD"], health) if not _exec_form(form)]
    if last["STOPSIGNAL"] != "SIGTERM":
        bad.append(f"STOPSIGNAL {last['STOPSIGNAL']}")
    if re.search(r"\b(curl|wget)\b", health):
        bad.append("the health check needs a program that is not in the image")
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(rest for word, rest in steps if word == "ENV")))
    volumes = json.loads(last["VOLUME"])
    bad += [f"{name} is on no volume" for name in WRITTEN
            if not any(Path(environment.get(name, "/")).joinpath("lading").is_relative_to(volume) for volume in volumes)]  # fmt: skip
    labels = " ".join(rest for word, rest in steps if word == "LABEL")
    bad += [f"no label {name}" for name in LABELS if f"org.opencontainers.image.{name}=" not in labels]
    ran = [rest for word, rest in steps if word == "RUN"]
    bad += [f"what runs has what builds: {rest}" for rest in ran
            if re.search(r"\b(apt-get|apk|gcc|make)\b|\bpip\S* (--python \S+ )?(install|download|wheel)\b", rest)]  # fmt: skip
    bad += [f"the base's pip stays: no {words}" for words in UNINSTALLED if not any(words in rest for rest in ran)]
    if environment.get("LADING_METRICS_PORT") != HEALTH_PORT:
        bad.append(f"the health check asks port {HEALTH_PORT}, where nothing is served")
    return bad


def _exec_form(text: str) -> bool:
    try:
        words = json.loads(text)
    except ValueError:
        return False
    return isinstance(words, list) and bool(words)


def ignored(path: str, lines: list[str]) -> bool:
    """Whether .dockerignore keeps a path out of the build: the last line that names it, or a folder that it is in, decides."""
    out = False
    names = [path, *map(str, Path(path).parents)]
    for line in (one.strip() for one in lines):
        pattern = line.removeprefix("!").rstrip("/")
        deep = pattern.startswith("**/")  # a name in any folder; else a path from the top
        matched = (Path(name).name if deep else name for name in names if deep or name.count("/") == pattern.count("/"))
        if line and not line.startswith("#") and any(fnmatchcase(one, pattern.removeprefix("**/")) for one in matched):
            out = not line.startswith("!")
    return out
