"""Bundles on a hub of models: pushed as one commit, and pulled only as what the manifest says.

Who one is comes from huggingface_hub's own ways (HF_TOKEN, or `hf auth login`), and so does the hub (HF_ENDPOINT).
Nothing that is pulled is run, and of a repository's files only those are fetched that a bundle's manifest names.
"""

import glob
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

from embed.files import replacing
from embed.progress import Progress, silent, stage
from embed.spec import InputError
from runtime.scoring.bundle import BundleError, open_bundle

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MANIFEST = "bundle.json"
NEW = {".gitattributes", "README.md", "LICENSE"}  # that a hub makes in a new repository
MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Pushed:
    """Where a bundle is now."""

    repo: str
    url: str
    commit: str  # which `pull` takes as a revision, for exactly these bytes


def push(bundle: Path, repo: str, public: bool = False, message: str = "Push a bundle") -> Pushed:
    """Send a verified bundle to a repository OWNER/NAME, which is made if it is not there, private unless `public`.

    Files of the bundle that was there before are removed in the same commit, others stay. Raise InputError if it is no
    bundle, if the repository holds something else, or if the hub refuses.
    """
    opened, api = open_bundle(bundle), _api()
    with stage(f"sending {bundle} to {repo}"), _refusals(repo):
        api.create_repo(repo, private=not public, exist_ok=True)
        wanted = [*opened.manifest["files"], MANIFEST]
        done = api.upload_folder(
            repo_id=repo,
            folder_path=opened.path,
            allow_patterns=wanted,
            delete_patterns=[glob.escape(name) for name in _former(api, repo) if name not in wanted],
            commit_message=message,
        )
    return Pushed(repo, f"{api.endpoint}/{repo}", done.oid)


def _former(api: "HfApi", repo: str) -> list[str]:
    """The files of the bundle that a repository holds; raise InputError if it holds something else."""
    there = set(api.list_repo_files(repo)) - NEW
    if not there:
        return []
    if MANIFEST not in there:
        raise InputError(
            f"{repo} holds no bundle but {len(there)} other files, such as {min(there)}; push to a new repository"
        )
    with TemporaryDirectory() as name:
        _fetch(api, repo, "main", MANIFEST, Path(name))
        return [file for file in _names(Path(name) / MANIFEST, repo) if file in there]


def pull(
    repo: str, out: Path, revision: str | None = None, overwrite: bool = False, progress: Progress = silent
) -> str:
    """Fetch a bundle into the folder `out`, which appears once every byte is verified; and give the commit it is of.

    `revision` is a branch, a tag or a commit. Raise InputError if the hub has no such bundle, or another than its
    manifest says.
    """
    api = _api()
    with replacing(out, "bundle", overwrite) as folder:
        with _refusals(repo):
            commit = api.repo_info(repo, revision=revision).sha
            if commit is None:
                raise InputError(f"the hub does not say which commit of {repo} this is; try again with --revision")
            _fetch(api, repo, commit, MANIFEST, folder)
            names = _names(folder / MANIFEST, repo)
            with progress(len(names), "file", f"pull {repo}") as step:
                for name in names:
                    _fetch(api, repo, commit, name, folder)
                    step()
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # which huggingface_hub leaves
        try:
            open_bundle(folder)
        except BundleError as error:
            said = str(error).replace(str(folder), f"{repo} at {commit[:12]}")
            raise InputError(f"what the hub gave is not the bundle that was pushed: {said}") from None
    return commit


def _fetch(api: "HfApi", repo: str, commit: str, name: str, folder: Path) -> None:
    path = Path(api.hf_hub_download(repo, name, revision=commit, local_dir=folder))
    if path.is_symlink() or path.parent.resolve() != folder.resolve():
        raise InputError(f"{repo} has a file {name} that is not a plain one; such a bundle is not pulled")


def _names(manifest: Path, repo: str) -> list[str]:
    """The files that a manifest names besides itself; nothing else of it is believed before all are verified."""
    if manifest.stat().st_size > MAX_MANIFEST_BYTES:
        raise InputError(f"{MANIFEST} of {repo} has {manifest.stat().st_size} bytes, more than any bundle's")
    try:
        names = list(json.loads(manifest.read_bytes())["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{MANIFEST} of {repo} is no manifest of a bundle; push one with `runtime push`") from None
    for name in names:
        if Path(name).name != name or name in (MANIFEST, ".cache"):
            raise InputError(f"{MANIFEST} of {repo} names {name!r}, which no bundle has; such a bundle is not pulled")
    return names


def _api() -> "HfApi":
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise InputError("a hub wants huggingface_hub; pip install 'plaudit[hub]'") from None
    return HfApi(library_name="plaudit")


@contextmanager
def _refusals(repo: str) -> Iterator[None]:
    """What the hub refuses, and that it cannot be reached, as errors of the user."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        _fail(f"{repo} is gated: ask for access on its page", error)
    except errors.RepositoryNotFoundError as error:
        _fail(f"the hub has no repository {repo}, or shows it to others only: log in with `hf auth login`", error)
    except errors.RevisionNotFoundError as error:
        _fail(f"{repo} has no such revision", error)
    except errors.LocalEntryNotFoundError as error:  # which is said where nothing is found here either
        _fail("the hub cannot be reached", error)
    except errors.EntryNotFoundError as error:
        _fail(f"{repo} lacks a file of a bundle", error)
    except errors.HFValidationError as error:
        _fail(f"{repo!r} is no name of a repository; wanted OWNER/NAME", error)
    except errors.HfHubHTTPError as error:
        _fail(f"the hub refused {repo}", error)
    except Exception as error:
        if not (isinstance(error, OSError) or type(error).__module__.startswith("httpx")):  # whose name has changed
            raise
        _fail("the hub cannot be reached", error)


def _fail(what: str, error: Exception) -> NoReturn:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    raise InputError(f"{what} ({first})") from None
