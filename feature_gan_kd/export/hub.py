"""Uploads a model to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from timm.models import push_to_hf_hub
from torch import nn

from feature_gan_kd.export.card import ModelCardInfo, license_of, tags_of
from feature_gan_kd.export.timm_folder import CARD, error_line, exportable_copy, publish, save_arguments
from feature_gan_kd.utils.errors import UserError


def push(
    model: nn.Module, repo_id: str, card_info: ModelCardInfo, *, private: bool = False, token: str | None = None
) -> None:
    """Uploads what `publish` writes, after the same checks.

    Args:
        model: built by timm.
        repo_id: `owner/name` on the Hub, or `name` under the token's owner.
        card_info: what config and card state.
        private: whether a new repository is private.
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
                model_card={"tags": tags_of(card_info), "license": license_of(model, card_info)},
                **save_arguments(card_info),
            )
            # timm writes its own card, and only into a repository that has none: replace it.
            api = HfApi(token=token)
            name = repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"
            api.upload_file(path_or_fileobj=folder / CARD, path_in_repo=CARD, repo_id=name)
        except Exception as error:  # the client raises its own errors, httpx's and the system's
            raise UserError(f"{repo_id}: {_explain_refusal(error)}; local exports are kept") from None


def _explain_refusal(error: Exception) -> str:
    """Says why the Hub did not accept the model, and what to do."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        answer = f"does not accept the token ({status})" if status else "requires a token"
        return f"the hub {answer}: log in with `hf auth login`, or pass a token with write access"
    if status is None and not isinstance(error, HFValidationError):
        return f"the hub cannot be reached ({error_line(error)}): check the model and push again"
    return f"the hub refuses it ({error_line(error)}): check the name and push again"
