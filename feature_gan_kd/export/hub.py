"""Pushing a model to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from timm.models import push_to_hf_hub
from torch import nn

from feature_gan_kd.export.card import TAGS, ModelCardInfo, license_of
from feature_gan_kd.export.timm_folder import CARD, exportable_copy, one_line, publish, save_arguments
from feature_gan_kd.utils.errors import UserError


def push(
    model: nn.Module, repo_id: str, card_info: ModelCardInfo, *, private: bool = False, token: str | None = None
) -> None:
    """Uploads what `publish` writes, after the same proof.

    Args:
        model: built by timm.
        repo_id: `owner/name` on the Hub, or `name` under the token's owner.
        publication: what config and card say.
        private: of a repository that does not exist yet.
        token: of the Hub; None means the one that is logged in.

    Raises:
        UserError: as `publish`, or where the Hub cannot be reached or refuses.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        publish(model, folder, card_info)
        try:
            push_to_hf_hub(
                exportable_copy(model, card_info),
                repo_id,
                commit_message="Add weights and config",
                token=token,
                private=private,
                model_card={"tags": list(TAGS), "license": license_of(model, card_info)},
                **save_arguments(card_info),
            )
            # timm writes a card of its own, and only where the repository has none.
            api = HfApi(token=token)
            name = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
            api.upload_file(path_or_fileobj=folder / CARD, path_in_repo=CARD, repo_id=name)
        except Exception as error:  # the client raises its own, httpx's and the system's
            raise UserError(f"{repo_id}: {_cause(error)}; what was exported on this machine stays there") from None


def _cause(error: Exception) -> str:
    """Why the Hub did not take a model, and what to do."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        said = f"does not take the token ({status})" if status else "wants a token"
        return f"the hub {said}: log in with `hf auth login`, or give a token that may write"
    if status is None and not isinstance(error, HFValidationError):
        return f"the hub cannot be reached ({one_line(error)}): check the model and push again"
    return f"the hub refuses it ({one_line(error)}): check the name and push again"
