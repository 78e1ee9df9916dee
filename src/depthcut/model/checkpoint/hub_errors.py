"""Errors of the hub, in one line each."""

import errno
from collections.abc import Generator
from contextlib import contextmanager

from depthcut.runtime.errors import UserError


class HubUnreachableError(Exception):
    """The hub did not answer; the message gives the reason."""


@contextmanager
def translate_hub_errors(repo: str, wanted: str) -> Generator[None]:
    """Turn errors of the hub's client into one line that names the remedy.

    Raises:
        HubUnreachableError: if the hub did not answer.
        UserError: if the hub refused, or its answer does not fit on disk.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except Exception as error:  # the exception for a dead network depends on the client's version
        if no := describe_hub_error(error, repo, wanted):
            raise UserError(no) from None
        cause = error.__cause__ or error
        offline = isinstance(cause, errors.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else " ".join(str(cause).split())[:200]
        raise HubUnreachableError(f"{constants.ENDPOINT} did not respond ({why})") from None


def describe_hub_error(error: Exception, repo: str, wanted: str) -> str | None:
    """Return the user message for an error of the hub's client; None if it concerns the network."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    login = "log in with `hf auth login` (or set HF_TOKEN)"
    answers: dict[type[Exception], str] = {
        errors.GatedRepoError: f"{repo} is gated: accept its licence at {hub}/{repo} and {login}",
        errors.RepositoryNotFoundError: f"no model {repo} at {hub}: check the name, or, if it is private, {login}",
        errors.RevisionNotFoundError: f"{repo} has no revision {wanted!r}; see {hub}/{repo}/tree/main",
        errors.RemoteEntryNotFoundError: f"{repo} has no {wanted}: it is not a complete transformers model",
        errors.HFValidationError: f"{repo!r} is not a repository on the hub; write OWNER/NAME",
    }
    for kind, answer in answers.items():
        if isinstance(error, kind):
            return answer
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"{hub} refused {repo} ({error.response.status_code}): {login}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return f"could not store {wanted} of {repo} ({error}); set HF_HOME to another folder"
    return None
