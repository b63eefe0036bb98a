"""Fetching a model from the hub, or finding it in the hub's cache."""

from pathlib import Path

from fromfew.errors import FromfewError

_CONFIGS = ["model_index.json", "fromfew.json", "*/*.json", "*/*.txt", "*/*.model"]


def snapshot(name: str, revision: str | None, variant: str | None, *, weights: bool = True) -> Path:
    """Folder with a hub id's configurations, tokenizers and (unless told not to) safetensors, never pickles.

    Raises:
        FromfewError: If it can neither be fetched nor found in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = [f"*/*.{variant}*.safetensors" if variant else "*/*.safetensors"] if weights else []
    # Without a variant the half-precision and non-averaged copies beside the plain weights are left out.
    ignored = [] if variant else ["*/*.fp16*.safetensors", "*/*.bf16*.safetensors", "*/*non_ema*.safetensors"]
    try:
        try:
            found = snapshot_download(
                name, revision=revision, allow_patterns=[*_CONFIGS, *wanted], ignore_patterns=ignored
            )
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise FromfewError(
                f"The hub has no '{name}'{f' at {revision}' if revision else ''}, or it is gated."
            ) from error
        except Exception:  # no connection, of whatever kind: what is in the cache will do
            found = snapshot_download(name, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise FromfewError(
            f"'{name}' is not in the hub's cache and the hub cannot be reached. Connect once, or give "
            "the path of a diffusers folder; 'world' needs no connection."
        ) from error
    return Path(found)
