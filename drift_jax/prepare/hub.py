"""Downloads from a model hub, through its own client; HF_ENDPOINT and HF_HOME act as it says."""

from pathlib import Path

# A checkpoint is weights in safetensors, its settings and its tokenizer. Nothing else is fetched:
# no pickles, which can run code when they are read, and no code.
CHECKPOINT_FILES = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


def download_file(repository: str, name: str, revision: str) -> Path:
    """One file of a data set, in the client's cache.

    Raises:
      ValueError: with the reason and the way around.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision))
    except Exception as error:  # the client raises many kinds, and those of its HTTP library
        raise ValueError(
            f"cannot download {name} of the data set {repository} at revision {revision} "
            f"({_reason(error)}); try another --revision, or name a local copy with --source"
        ) from error


def resolve_revision(repository: str, revision: str) -> str:
    """The commit that a model's revision stands for.

    Raises:
      ValueError: with the reason.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(repository, revision=revision).sha
    except Exception as error:
        raise ValueError(
            f"cannot find revision {revision} of the model {repository} ({_reason(error)}); "
            "check the name and the connection"
        ) from error
    return str(commit)


def download_checkpoint(repository: str, commit: str, folder: Path) -> None:
    """Fills a folder with a model's checkpoint; goes on where an earlier call stopped.

    Raises:
      ValueError: with the reason; what is there already stays.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            repository,
            revision=commit,
            local_dir=folder,
            allow_patterns=list(CHECKPOINT_FILES),
            ignore_patterns=["*/*"],  # other forms of the same model
        )
    except Exception as error:
        raise ValueError(
            f"the download of {repository} stopped ({_reason(error)}); "
            f"{folder} keeps what has come, type the same command again to go on"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
