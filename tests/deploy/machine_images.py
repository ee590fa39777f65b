"""Images without a registry: buildah builds them on a base that mmdebstrap makes, and a container is a chroot that its config is obeyed in.

Needs root, and a Debian or Ubuntu. Stands in for Docker as far as this goes: what an image runs as, what it may write, what it sees.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "bookworm"  # its Python is 3.11
RUN = "python3,ca-certificates"
BUILD = f"{RUN},python3-dev,python3-pip,python3-venv,gcc,libc6-dev"
DRIVER = os.environ.get("STORAGE_DRIVER", "overlay")  # vfs where there is no overlay in an overlay, as in a container
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# In namespaces of its own, as a container: the image's tree read-only but for what is mounted, and no way to more rights.
CONTAINER = """
set -e
mount --make-rprivate /
mount --bind "$R" "$R"
for device in null zero urandom; do touch "$R/dev/$device"; mount --bind "/dev/$device" "$R/dev/$device"; done
mkdir -p "$R/dev/shm"
mount -t tmpfs -o nosuid,nodev,mode=1777 shm "$R/dev/shm"
mount -o remount,bind,ro "$R"
mount -t proc -o nosuid,nodev,noexec proc "$R/proc"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmp "$R/tmp"
while read -r from to mode; do mount --bind "$from" "$R$to"; [ "$mode" = rw ] || mount -o remount,bind,ro "$R$to"; done <<< "$MOUNTS"
exec setpriv --no-new-privs -- env -i "${@:2:$1}" "$CHROOT" --userspec="$USERSPEC" --groups= "$R" /bin/sh -c 'cd "$0" && exec "$@"' "$WORKDIR" "${@:$1+2}"
"""


class Images:
    """A store of images in `folder`; bases are made at the start."""

    def __init__(self, folder: Path) -> None:
        for tool, package in (
            ("buildah", "buildah"),
            ("mmdebstrap", "mmdebstrap"),
            ("unshare", "util-linux"),
            ("chroot", "coreutils"),
        ):
            assert shutil.which(tool), f"no {tool}: apt install {package}"
        assert os.geteuid() == 0, "images are built by root here"
        self.folder = folder
        for name, packages in (("base", RUN), ("build", BUILD)):
            archive = folder / f"{name}.tar"
            # In a namespace of its own, so that nothing of it stays mounted, however it ends.
            self._run(
                "unshare",
                "--mount",
                "mmdebstrap",
                "--quiet",
                "--variant=minbase",
                "--dpkgopt=force-unsafe-io",  # a base that is lost is made again
                f"--include={packages}",
                RELEASE,
                str(archive),
            )
            container = self.buildah("from", "scratch")
            self.buildah("add", container, str(archive), "/")
            self.buildah("config", "--env", f"PATH={PATH}", container)
            self.buildah("commit", "--rm", container, f"localhost/{name}:{RELEASE}")
            archive.unlink()

    def close(self) -> None:
        """Unmount and remove all of it."""
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")

    def build(self, target: str, **arguments: str) -> str:
        """The name of the image that a target of the Dockerfile gives, on our bases, with the indexes that this machine's pip knows."""
        given = {"PYTHON_IMAGE": f"localhost/base:{RELEASE}", "BUILD_IMAGE": f"localhost/build:{RELEASE}", **arguments}
        words = [word for name, value in given.items() for word in ("--build-arg", f"{name}={value}")]
        words += [word for mount in self._pip() for word in ("--volume", mount)]
        words += ["--file", str(ROOT / "deploy/docker/Dockerfile"), "--target", target, "--tag", f"localhost/{target}"]
        words += ["--isolation", "chroot", "--pull-never", "--format", "docker", "--layers"]
        self.buildah("bud", *words, str(ROOT))
        return f"localhost/{target}"

    def _pip(self) -> list[str]:
        """What is mounted while an image is built: a pip.conf with this machine's indexes and certificates, and the folders it names."""
        told = self._run(sys.executable, "-m", "pip", "config", "list").splitlines()
        known = {line.partition("=")[0].rpartition(".")[2]: ast.literal_eval(line.partition("=")[2]) for line in told}
        kept = {key: known[key] for key in ("index-url", "extra-index-url", "find-links", "cert") if key in known}
        lines = ["[global]", *(f"{key} = {' '.join(value.split())}" for key, value in kept.items()), ""]
        (self.folder / "pip.conf").write_text("\n".join(lines))
        named = [word.removeprefix("file://") for value in kept.values() for word in value.split()]
        named = [word.removesuffix("/simple") for word in named]  # an index's files lie beside its pages
        places = [place for place in [*named, CERTIFICATES] if place.startswith("/") and os.path.exists(place)]
        return [f"{self.folder}/pip.conf:/etc/pip.conf:ro", *(f"{place}:{place}:ro" for place in dict.fromkeys(places))]

    def config(self, image: str) -> dict[str, Any]:
        """What the image says of itself: User, Env, Entrypoint, Cmd, WorkingDir, Healthcheck, Labels."""
        return json.loads(self.buildah("inspect", "--type", "image", image))["Docker"]["config"]

    def root(self, image: str) -> Path:
        """A new tree of it."""
        return Path(self.buildah("mount", self.buildah("from", "--pull-never", image)))

    def start(
        self, image: str, root: Path, words: Sequence[str], mounts: Sequence[tuple[Path, str, str]], **more: Any
    ) -> subprocess.Popen[str]:
        """Run the image's entrypoint with `words` as the image's user, its root read-only. mounts: (here, there, "ro" or "rw")."""
        config = self.config(image)
        environment = dict(one.split("=", 1) for one in config["Env"]) | more.pop("environment", {})
        for _, there, _ in mounts:
            (root / there.lstrip("/")).mkdir(parents=True, exist_ok=True)
        command = [
            "unshare",
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
            "bash",
            "-c",
            CONTAINER,
            "container",
        ]
        command += [str(len(environment)), *(f"{name}={value}" for name, value in environment.items())]
        command += [*more.pop("entrypoint", config["Entrypoint"]), *words]
        told: Mapping[str, str] = {
            "PATH": os.environ["PATH"],
            "CHROOT": str(shutil.which("chroot")),
            "R": str(root),
            "MOUNTS": "\n".join(f"{here} {there} {mode}" for here, there, mode in mounts),
            "USERSPEC": config["User"],
            "WORKDIR": config["WorkingDir"],
        }
        return subprocess.Popen(command, env=told, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)

    def buildah(self, *words: str) -> str:
        places = [
            "--root",
            str(self.folder / "store"),
            "--runroot",
            str(self.folder / "run"),
            "--storage-driver",
            DRIVER,
        ]
        return self._run("buildah", *places, *words)

    def _run(self, *command: str) -> str:
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()
