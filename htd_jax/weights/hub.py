"""Weights by name from the Hugging Face hub: `hf:timm/resnet50.tv_in1k`, `hf:OWNER/NAME@REVISION`."""
from htd_jax.errors import UserError, one_line

PREFIX = "hf:"

_FILES = ("model.safetensors", "pytorch_model.bin")


def download(name: str) -> str:
    """The path of the weights called `name`, downloaded once and then kept in the hub's own cache.

    Raises UserError where the name, the network or the file in the repository is missing.
    """
    from huggingface_hub import errors, hf_hub_download
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    if repo.count("/") != 1:
        raise UserError(f"{name}: a name on the hub is hf:OWNER/NAME, for example hf:timm/resnet50.tv_in1k")
    for file in _FILES:
        try:
            return hf_hub_download(repo, file, revision=revision or None)
        except errors.RepositoryNotFoundError as error:
            raise UserError(f"{name}: the hub has no such repository, or it is private") from error
        except errors.RevisionNotFoundError as error:
            raise UserError(f"{name}: the repository has no revision {revision!r}") from error
        except errors.LocalEntryNotFoundError as error:
            raise UserError(f"{name}: cannot be downloaded, and no copy is in the hub's cache; is there a network? "
                            "Else fetch the file elsewhere and give its path") from error
        except errors.EntryNotFoundError:
            continue  # the other format
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
            raise UserError(f"{name}: cannot be downloaded: {type(error).__name__} {one_line(error)}") from error
    raise UserError(f"{name}: the repository has none of {', '.join(_FILES)}")
