"""Loading of a model's tokenizer with transformers, with errors turned into one line."""

from typing import TYPE_CHECKING

from depthcut.model.checkpoint.files import ModelFiles
from depthcut.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# Files that define a tokenizer.
NAMES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def read_tokenizer(files: ModelFiles, config: "PreTrainedConfig") -> "PreTrainedTokenizerBase":
    """Load the tokenizer of the model with this ``config``.

    Raises:
        UserError: if transformers cannot read it, or a file has changed since it was pinned.
    """
    from transformers import AutoTokenizer

    folder = files.folder
    available = [name for name in NAMES if name in files.names]
    files.check_unchanged(*available)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False, local_files_only=True)
    except BaseException as error:  # its Rust reader raises plain Exception, and panics that are not even that
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        why = " ".join(str(error).split())[:200]
        given = f"its tokenizer files: {', '.join(available) or 'none'}"
        raise UserError(f"{files.title} has no tokenizer that transformers can read ({why}); {given}") from None
    files.check_unchanged(*available)
    return tokenizer
